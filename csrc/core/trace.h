// What each lane did and when. Rows are reserved before the run: a round allocates nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "core/program.h"

namespace pearl {

struct TraceRow {
  OpKind op;
  int32_t round;     // 0 is the prologue
  int64_t begin_ns;  // steady clock; a wait begins when the lane reaches it
  int64_t end_ns;
};

class Trace {
 public:
  void reset(size_t max_rows) {
    rows_.clear();
    rows_.reserve(max_rows);
  }
  void add(OpKind op, int round, int64_t begin_ns, int64_t end_ns) {
    if (rows_.size() < rows_.capacity()) rows_.push_back({op, round, begin_ns, end_ns});
  }
  const std::vector<TraceRow>& rows() const { return rows_; }

 private:
  std::vector<TraceRow> rows_;
};

}  // namespace pearl
