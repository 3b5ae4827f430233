// The KV blocks of windows that lie beside one another behind one sequence. Window 0 is written to the blocks
// of the sequence. Each other one, a branch, reads these too, and has blocks of its own for what it writes:
// the rows of the sequence that lie in the first of them are copied there once.
// Knows blocks and rows; not tokens, nor which branch is taken.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "core/executor.h"

namespace pearl {

class Branches {
 public:
  static constexpr int kMostWindows = 8;  // of a sequence

  // num_windows: of a sequence, window 0 too. longest: rows that one writes at most. first_block: the id of
  // the first of their blocks; there are num_blocks() of them.
  Branches(int num_slots, int num_windows, int64_t longest, int first_block, int block_size, int max_blocks)
      : num_branches_(num_windows - 1),
        each_(blocks_of_one(longest, block_size)),
        first_block_(first_block),
        block_size_(block_size),
        table_(max_blocks),
        tables_(static_cast<size_t>(num_slots) * num_branches_ * table_),
        copied_(static_cast<size_t>(num_slots) * num_branches_) {}

  // Of all branches together.
  static int64_t num_blocks(int64_t num_slots, int64_t num_windows, int64_t longest, int block_size) {
    return num_slots * (num_windows - 1) * blocks_of_one(longest, block_size);
  }

  // The table of a branch, for rows below `end`: it has the rows of the sequence below `start`, and writes
  // from there on. start never falls while the sequence is the same. sequence: which one has the slot.
  std::span<const int32_t> table(Executor* executor, int slot, int branch, uint64_t sequence,
                                 const int32_t* own, int64_t start, int64_t end) {
    const int64_t first = start / block_size_, count = (end + block_size_ - 1) / block_size_;
    const size_t at = static_cast<size_t>(slot) * num_branches_ + branch - 1;
    int32_t* const table = tables_.data() + at * table_;
    std::copy(own, own + first, table);
    for (int64_t block = first; block < count; ++block) table[block] = block_of(at, block);
    Copied& copied = copied_[at];
    if (copied.sequence != sequence) copied = {sequence, 0};
    const int64_t from = std::max(copied.rows, first * block_size_);
    copied.rows = start;
    if (from < start) {
      executor->copy_rows(own[first], table[first], static_cast<int>(from % block_size_),
                          static_cast<int>(start - from));
    }
    return {table, static_cast<size_t>(count)};
  }

  // Rows [start, end) of a branch, written behind its last table(), become those of the sequence.
  void adopt(Executor* executor, int slot, int branch, const int32_t* own, int64_t start, int64_t end) const {
    const size_t at = static_cast<size_t>(slot) * num_branches_ + branch - 1;
    while (start < end) {
      const int64_t block = start / block_size_;
      const int64_t stop = std::min(end, (block + 1) * block_size_);
      executor->copy_rows(block_of(at, block), own[block], static_cast<int>(start % block_size_),
                          static_cast<int>(stop - start));
      start = stop;
    }
  }

 private:
  struct Copied {
    uint64_t sequence = ~uint64_t{0};
    int64_t rows = 0;  // of the sequence, that lie in the branch's blocks too, as far as these are theirs
  };

  // Rows that begin at any place of a block.
  static int64_t blocks_of_one(int64_t longest, int block_size) {
    return (longest + block_size - 2) / block_size + 1;
  }
  // That stands in place of the block with that number of a sequence. Those of a window all differ.
  int32_t block_of(size_t branch, int64_t block) const {
    return static_cast<int32_t>(first_block_ + static_cast<int64_t>(branch) * each_ + block % each_);
  }

  const int64_t num_branches_, each_;
  const int64_t first_block_, block_size_, table_;
  std::vector<int32_t> tables_;  // [B, branches, max_blocks]
  std::vector<Copied> copied_;   // [B, branches]
};

}  // namespace pearl
