#include "cache/prefix_cache.h"

#include <algorithm>

namespace pearl {

PrefixCache::PrefixCache(BlockPool* pool)
    : pool_(pool),
      nodes_(pool->num_blocks()),
      tokens_(static_cast<size_t>(pool->num_blocks()) * pool->block_size()) {
  blocks_.reserve(pool->num_blocks());
}

// FNV-1a over words, and splitmix64's finalizer.
uint64_t PrefixCache::key_of(uint64_t parent, const int32_t* tokens) const {
  uint64_t key = 0xCBF29CE484222325u ^ parent * 0x9E3779B97F4A7C15u;
  for (int i = 0; i < pool_->block_size(); ++i) {
    key = (key ^ static_cast<uint32_t>(tokens[i])) * 0x100000001B3u;
    key ^= key >> 29;
  }
  key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9u;
  key = (key ^ (key >> 27)) * 0x94D049BB133111EBu;
  return key ^ (key >> 31);
}

int32_t PrefixCache::known(uint64_t key, uint64_t parent, const int32_t* tokens) const {
  const auto at = blocks_.find(key);
  if (at == blocks_.end() || !pool_->is_kept(at->second)) return -1;
  const int32_t block = at->second;
  const int size = pool_->block_size();
  const bool agrees = nodes_[block].parent == parent &&
                      std::equal(tokens, tokens + size, tokens_.begin() + static_cast<int64_t>(block) * size);
  return agrees ? block : -1;
}

std::optional<PrefixCache::Entry> PrefixCache::find(uint64_t parent, const int32_t* tokens,
                                                    bool needs_draft) const {
  const int32_t block = known(key_of(parent, tokens), parent, tokens);
  if (block < 0 || (needs_draft && !nodes_[block].has_draft)) return std::nullopt;
  return Entry{block, nodes_[block].id};
}

void PrefixCache::forget(int32_t block) {
  const auto at = blocks_.find(nodes_[block].key);
  if (at != blocks_.end() && at->second == block) blocks_.erase(at);
}

void PrefixCache::clear() {
  for (int block = 0; block < pool_->num_blocks(); ++block) pool_->set_kept(block, false);
  blocks_.clear();
}

PrefixCache::Entry PrefixCache::enter(uint64_t parent, const int32_t* tokens, int32_t block, bool has_draft) {
  const uint64_t key = key_of(parent, tokens);
  const int32_t before = known(key, parent, tokens);
  if (before >= 0 && (before == block || nodes_[before].has_draft || !has_draft)) {
    return {before, nodes_[before].id};
  }
  const uint64_t id = before >= 0 ? nodes_[before].id : ++last_id_;  // what stands behind it stays known
  forget(block);  // of what it held before it was given out
  const auto [at, is_new] = blocks_.try_emplace(key, block);
  if (!is_new) {
    if (pool_->is_kept(at->second)) pool_->set_kept(at->second, false);
    at->second = block;
  }
  const int size = pool_->block_size();
  std::copy(tokens, tokens + size, tokens_.begin() + static_cast<int64_t>(block) * size);
  nodes_[block] = {key, parent, id, has_draft};
  pool_->set_kept(block, true);
  return {block, id};
}

}  // namespace pearl
