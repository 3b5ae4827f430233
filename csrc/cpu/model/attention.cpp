#include "cpu/model/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pearl {
namespace {

constexpr float kNoScore = -1e30f;  // of a position in front of a row's window: far below any other

// Hugging Face's rotate-half: dimensions i and i + head_dim / 2 turn by the same angle.
void rope(const float* x, const float* cos, const float* sin, int half, float* out) {
  for (int i = 0; i < half; ++i) {
    out[i] = x[i] * cos[i] - x[i + half] * sin[i];
    out[i + half] = x[i + half] * cos[i] + x[i] * sin[i];
  }
}

// RMSNorm over one head; 16 partial sums, then a fixed tree.
void norm_head(const float* x, const float* weight, int n, float eps, float* out) {
  float squares[kLanes] = {};
  for (int first = 0; first < n; first += kLanes) {
    const int count = std::min(kLanes, n - first);
    for (int i = 0; i < count; ++i) squares[i] += x[first + i] * x[first + i];
  }
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) squares[i] += squares[i + width];
  }
  const float scale = 1.0f / std::sqrt(squares[0] / static_cast<float>(n) + eps);
  for (int i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

char* element_at(void* base, int64_t index, DType dtype) {
  return static_cast<char*>(base) + index * size_of(dtype);
}

void rope_row(const AttentionStep& s, const AttentionScratch& scratch, const Piece& piece, int kv_head,
              int offset) {
  const LlamaConfig& c = s.config;
  const DType dtype = s.kernels.dtype;
  const int group = c.heads_per_kv_head(), dim = c.head_dim, half = dim / 2;
  const int64_t row = piece.first_row + offset, position = piece.start + offset;
  const float* cos = s.cos + position * half;
  const float* sin = s.sin + position * half;
  const float* qkv = s.qkv + row * s.qkv_stride;
  float* normed = scratch.head();
  float* turned = scratch.head() + dim;
  for (int g = 0; g < group; ++g) {
    const float* q = qkv + (kv_head * group + g) * dim;
    if (s.q_norm) {
      norm_head(q, s.q_norm, dim, c.rms_norm_eps, normed);
      q = normed;
    }
    rope(q, cos, sin, half, turned);
    const int64_t query = (int64_t{kv_head} * s.capacity + row) * group + g;
    s.kernels.convert_query(turned, 1.0f, dim, element_at(s.queries, query * dim, s.kernels.query_dtype));
  }
  const float* k = qkv + c.q_size() + kv_head * dim;
  const float* v = qkv + c.q_size() + c.kv_size() + kv_head * dim;
  if (s.k_norm) {
    norm_head(k, s.k_norm, dim, c.rms_norm_eps, normed);
    k = normed;
  }
  rope(k, cos, sin, half, turned);
  void* key = scratch.elements();
  void* value = element_at(key, dim, dtype);
  s.kernels.convert(turned, 1.0f, dim, key);
  s.kernels.convert(v, 1.0f, dim, value);
  const int block_size = s.cache.block_size();
  s.cache.store(s.layer, piece.block_table[position / block_size], kv_head,
                static_cast<int>(position % block_size), key, value);
}

}  // namespace

// A row has no part in the blocks that it does not see.
void attend(const AttentionStep& s, const AttentionScratch& scratch, const AttentionItem& item) {
  const LlamaConfig& c = s.config;
  const Piece& piece = *item.piece;
  const int kv_head = item.kv_head, first = item.first, rows = item.last - item.first;
  const DType dtype = s.kernels.dtype, query_dtype = s.kernels.query_dtype;
  const int group = c.heads_per_kv_head(), dim = c.head_dim;
  int visible[kTileRows];
  for (int m = 0; m < rows; ++m) {
    const int token = (first + m) / group;
    const bool is_open = token >= piece.num_rows - piece.num_open;
    visible[m] = static_cast<int>(piece.start) + (is_open ? piece.num_rows : token + 1);
  }
  const int context = visible[rows - 1];
  const auto hidden = [&](int row) {  // positions in front of its window
    return c.attention_window > 0 ? std::max(0, visible[row] - c.attention_window) : 0;
  };
  const int64_t query = (int64_t{kv_head} * s.capacity + piece.first_row) * group + first;
  const int block_size = s.cache.block_size(), num_blocks = (context + block_size - 1) / block_size;
  const int first_block = hidden(0) / block_size, begin = first_block * block_size;  // none attends before
  const auto keys = [&](int block) { return s.cache.keys(s.layer, piece.block_table[block], kv_head); };
  const auto values = [&](int block) { return s.cache.values(s.layer, piece.block_table[block], kv_head); };
  const auto positions = [&](int block) { return std::min(block_size, context - block * block_size); };

  // Of several blocks the next is fetched whole while one is read: no hardware sees where it lies. In fp32,
  // where they are twice as large, that costs more than it saves.
  const bool from_memory = s.from_memory || (num_blocks - first_block > 1 && dtype == DType::kBfloat16);

  MatmulArgs qk{};
  qk.x_stride = dim;
  qk.w_stride = s.cache.key_stride();
  qk.k = dim;
  qk.from_memory = from_memory;
  qk.epilogue = Epilogue::kStore;
  qk.out_stride = scratch.stride();
  for (int block = first_block, blind = 0; block < num_blocks; ++block) {
    while (visible[blind] <= block * block_size) ++blind;
    qk.x = element_at(s.queries, (query + blind) * dim, query_dtype);
    qk.rows = rows - blind;
    qk.w = keys(block);
    qk.num_blocks = (positions(block) + kLanes - 1) / kLanes;
    qk.num_cols = qk.num_blocks * kLanes;
    qk.out = scratch.scores() + blind * scratch.stride() + block * block_size;
    qk.next_w = block + 1 < num_blocks ? keys(block + 1) : nullptr;
    qk.next_w_stride = qk.w_stride;
    s.kernels.matmul_any_k(qk);
  }

  float inverse_sum[kTileRows];
  int in_blocks[kTileRows];  // positions from `begin` on
  for (int m = 0; m < rows; ++m) {
    in_blocks[m] = visible[m] - begin;
    std::fill_n(scratch.scores() + m * scratch.stride() + begin, std::max(0, hidden(m) - begin), kNoScore);
  }
  SoftmaxArgs softmax{};
  softmax.scores = scratch.scores() + begin;
  softmax.p = element_at(scratch.probabilities(), begin, query_dtype);
  softmax.stride = scratch.stride();
  softmax.rows = rows;
  softmax.visible = in_blocks;
  softmax.num_positions = context - begin;
  softmax.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  softmax.inverse_sum = inverse_sum;
  s.kernels.softmax(softmax);
  for (int m = 0; m < rows && hidden(rows - 1) > begin; ++m) {
    void* const first_p = element_at(scratch.probabilities(), m * scratch.stride() + begin, query_dtype);
    std::memset(first_p, 0, std::max(0, hidden(m) - begin) * size_of(query_dtype));
  }

  const int64_t padded_dim = int64_t{s.cache.value_tiles()} * kLanes;
  MatmulArgs pv{};
  pv.x_stride = scratch.stride();
  pv.w_stride = s.cache.value_stride();
  pv.num_blocks = s.cache.value_tiles();
  pv.num_cols = static_cast<int>(padded_dim);
  pv.from_memory = from_memory;
  pv.epilogue = Epilogue::kStore;
  pv.out_stride = padded_dim;
  for (int block = first_block, blind = 0; block < num_blocks; ++block) {
    while (visible[blind] <= block * block_size) ++blind;
    const bool last = block + 1 == num_blocks;
    pv.x = element_at(scratch.probabilities(), blind * scratch.stride() + block * block_size, query_dtype);
    pv.rows = rows - blind;
    pv.w = values(block);
    pv.k = dtype == DType::kBfloat16 ? static_cast<int>(round_up(positions(block), 2)) : positions(block);
    pv.out = scratch.sums() + blind * padded_dim;
    pv.next_w = last ? s.next_w : values(block + 1);
    pv.next_w_stride = last ? s.next_w_stride : pv.w_stride;
    pv.continues = block > first_block;
    s.kernels.matmul_any_k(pv);
  }

  for (int m = 0; m < rows; ++m) {
    const int64_t row = piece.first_row + (first + m) / group;
    const int head = kv_head * group + (first + m) % group;
    s.kernels.convert(scratch.sums() + m * padded_dim, inverse_sum[m], dim,
                      element_at(s.out, row * s.out_stride + int64_t{head} * dim, dtype));
  }
}

AttentionScratch::AttentionScratch(const LlamaConfig& config, DType query_dtype, int64_t max_model_len)
    : stride_(round_up(max_model_len, kLanes) +
              2 * kLanes) {  // not a power of two: rows fall into different sets
  const int64_t padded_dim = round_up(config.head_dim, kLanes);
  const bool in_place = query_dtype == DType::kFloat32;  // probabilities, in place of their scores
  probabilities_offset_ = in_place ? 0 : kTileRows * stride_ * 4;
  sums_offset_ = probabilities_offset_ + kTileRows * stride_ * size_of(query_dtype);
  head_offset_ = sums_offset_ + kTileRows * padded_dim * 4;
  elements_offset_ = head_offset_ + 2 * padded_dim * 4;
  buffer_ = HugeBuffer(elements_offset_ + 2 * padded_dim * 4, "attention scratch");
}

void AttentionItems::plan(const std::vector<Piece>& pieces, const LlamaConfig& config, int num_threads) {
  rope.clear();
  attend.clear();
  is_joint = true;
  const int kv_heads = config.num_key_value_heads;
  // Groups of 16 query rows, or smaller where there would be fewer than one for each thread.
  const int units = static_cast<int>(pieces.size()) * kv_heads, wanted = (num_threads + units - 1) / units;
  for (const Piece& piece : pieces) {
    const int query_rows = piece.num_rows * config.heads_per_kv_head();
    const int groups = std::max((query_rows + kTileRows - 1) / kTileRows, std::min(query_rows, wanted));
    is_joint = is_joint && groups == 1;
    for (int kv_head = 0; kv_head < kv_heads; ++kv_head) {
      for (int offset = 0, end; offset < piece.num_rows; offset = end) {
        const int in_block = static_cast<int>((piece.start + offset) % kLanes);
        end = std::min(offset + kLanes - in_block, piece.num_rows);
        rope.push_back({&piece, kv_head, offset, end});
      }
      for (int group = 0; group < groups; ++group) {
        const int first = static_cast<int>(int64_t{query_rows} * group / groups);
        const int end = static_cast<int>(int64_t{query_rows} * (group + 1) / groups);
        attend.push_back({&piece, kv_head, first, end});
      }
    }
  }
}

void rope_and_store(const AttentionStep& step, const AttentionScratch& scratch, const Piece& piece,
                    int kv_head, int first, int last) {
  for (int i = first; i < last; ++i) rope_row(step, scratch, piece, kv_head, i);
}

}  // namespace pearl
