// The ids of a draft whose vocabulary is not its target's: all that the state holds are the target's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/checks.h"

namespace pearl {

struct DraftIds {
  static constexpr int32_t kNone = -1;

  std::vector<int32_t>
      target_of;                  // the target's id of each row of the draft's head, or kNone; none: the same
  std::vector<int32_t> draft_of;  // what the draft is fed for each id of the target; none: the same

  // Throws Failure(kRequest) for ids that are not of the draft, which has `rows` and `vocab_size`, or of the
  // target.
  void check(int rows, int vocab_size) const {
    const size_t wanted = target_of.empty() ? vocab_size : target_of.size();
    if (wanted != static_cast<size_t>(rows)) {
      refuse("the head has rows for " + std::to_string(rows) + " ids, and target_ids for " +
             std::to_string(wanted) + "; give one for each");
    }
    const int target_size = draft_of.empty() ? vocab_size : static_cast<int>(draft_of.size());
    for (const int32_t id : target_of) check_between("target_ids", id, kNone, target_size - 1);
    for (const int32_t id : draft_of) check_between("draft_ids", id, 0, vocab_size - 1);
  }
};

}  // namespace pearl
