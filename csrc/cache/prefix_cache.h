// Which kept block of a pool has the KV rows of which tokens. A block is known by its tokens and by the block
// before it, so that equal tokens behind unlike ones are two. Knows ids and tokens; not sequences.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "cache/block_pool.h"

namespace pearl {

class PrefixCache {
 public:
  static constexpr uint64_t kRoot = 0;  // what stands before the first block

  struct Entry {
    int32_t block;
    uint64_t id;  // what its rows are known by: that of these tokens behind these, never that of others
  };

  // pool: outlives this. Of blocks that are full, and whose rows are never written again.
  explicit PrefixCache(BlockPool* pool);

  // The block of block_size tokens behind the entry `parent`. needs_draft: with rows in the draft's cache
  // too. Tokens are compared, so that a hash that two have in common costs a hit and no more. The caller
  // shares it before the pool gives out another.
  std::optional<Entry> find(uint64_t parent, const int32_t* tokens, bool needs_draft) const;

  // These tokens are in a block that the caller holds. Returns the block that they are found by from now on:
  // another one if they were known, unless has_draft is new. Both have the same rows, bit for bit.
  Entry enter(uint64_t parent, const int32_t* tokens, int32_t block, bool has_draft);

  // No block is found any more. Their ids are not used again.
  void clear();

  // Of memory, beside the pool's.
  static double bytes(double num_blocks, double block_size) { return num_blocks * (4 * block_size + 128); }

 private:
  struct Node {
    uint64_t key = 0, parent = 0, id = kRoot;
    bool has_draft = false;
  };

  uint64_t key_of(uint64_t parent, const int32_t* tokens) const;
  int32_t known(uint64_t key, uint64_t parent, const int32_t* tokens) const;  // -1: none
  void forget(int32_t block);

  BlockPool* const pool_;
  std::vector<Node> nodes_;                       // [num_blocks] of kept blocks
  std::vector<int32_t> tokens_;                   // [num_blocks, block_size]
  std::unordered_map<uint64_t, int32_t> blocks_;  // by key; an entry whose block is not kept is stale
  uint64_t last_id_ = kRoot;
};

}  // namespace pearl
