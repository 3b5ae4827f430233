// Attention for an instruction set that has no products of bf16: queries and probabilities are fp32, and keys
// and values are widened once for all rows of a call. Included after kernels_body.h, inside the anonymous
// namespace of a kernels_*.cpp, which has defined multiply_add of Weights of bf16 with two fp32, and keep_exp
// of bf16 in fp32. As everywhere, an output element has one sum, over ascending K: the bits are those of
// matmul. (No #pragma once, no #include: it is a body.)

// Rows of a register tile: of 16 registers, 12 are sums, two a line of w, and one a number of x. A tile that
// widens holds two lines.
constexpr int kWideRows = 6, kPairRows = 5;
constexpr int kWideDepth = 128;  // of K, widened at once: 8 KiB, a quarter of a first-level cache

// Column blocks of a tile that widens: as many sums as hide the time of a sum.
constexpr int pair_blocks_of(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

// ROWS rows of a tile, 16 BLOCKS columns: loaded, or zero, and stored.
template <int ROWS, int BLOCKS>
struct WideTile {
  Vec sum[ROWS][BLOCKS];

  inline void begin(const float* out, int64_t stride, bool continues) {
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 4
      for (int b = 0; b < BLOCKS; ++b)
        sum[m][b] = continues ? load(out + m * stride + b * kLanes) : set1(0.0f);
    }
  }
  inline void end(float* out, int64_t stride) const {
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 4
      for (int b = 0; b < BLOCKS; ++b) store(out + m * stride + b * kLanes, sum[m][b]);
    }
  }
};

inline float* wide_out(const MatmulArgs& a, int row, int block) {
  return static_cast<float*>(a.out) + row * a.out_stride + block * kLanes;
}

// The first ROWS rows and BLOCKS column blocks, over [from, from + depth) of K. Fetches what is read next.
// KEEPS: leaves the lines of the one block at `wide`, in fp32.
template <int ROWS, int BLOCKS, bool KEEPS>
inline void pair_sums(const MatmulArgs& a, int block, int from, int depth, float* wide) {
  const float* x = static_cast<const float*>(a.x) + from;
  const float* x3 = x + 3 * a.x_stride;
  const auto* w = static_cast<const uint16_t*>(a.w) + block * a.w_stride + from * kLanes;
  const int64_t ahead_stride = a.next_w ? a.next_w_stride : a.w_stride;
  const auto* ahead =
      static_cast<const uint16_t*>(a.next_w ? a.next_w : a.w) + block * ahead_stride + from * kLanes;
  WideTile<ROWS, BLOCKS> tile;
  tile.begin(wide_out(a, 0, block), a.out_stride, a.continues || from > 0);
  for (int i = 0; i < depth; i += 2) {
    const int64_t line = int64_t{i} * kLanes;
#pragma GCC unroll 4
    for (int b = 0; b < BLOCKS; ++b) {
      const Weights pair = load_weights(w + b * a.w_stride + line);
      prefetch(reinterpret_cast<const char*>(ahead + b * ahead_stride + line));
      if constexpr (KEEPS) {
        store(wide + line, pair.even);
        store(wide + line + kLanes, pair.odd);
      }
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m) {
        tile.sum[m][b] = multiply_add(tile.sum[m][b], pair, (m < 3 ? x : x3) + m % 3 * a.x_stride + i);
      }
    }
  }
  tile.end(wide_out(a, 0, block), a.out_stride);
}

// ROWS rows from `row` on and a column block whose lines [from, from + depth) are at w.
template <int ROWS>
inline void wide_sums(const MatmulArgs& a, int row, int block, const float* w, int from, int depth) {
  const float* x = static_cast<const float*>(a.x) + row * a.x_stride + from;
  const float* x3 = x + 3 * a.x_stride;
  WideTile<ROWS, 1> tile;
  tile.begin(wide_out(a, row, block), a.out_stride, a.continues || from > 0);
#pragma GCC unroll 4
  for (int i = 0; i < depth; ++i) {
    const Vec line = load(w + int64_t{i} * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      tile.sum[m][0] = fma(line, set1(*((m < 3 ? x : x3) + m % 3 * a.x_stride + i)), tile.sum[m][0]);
    }
  }
  tile.end(wide_out(a, row, block), a.out_stride);
}

// body(Width<rows>) for 1..MOST rows known only now.
template <int MOST, class Body>
inline void for_rows(int rows, const Body& body) {
  if constexpr (MOST > 1) {
    if (rows < MOST) return for_rows<MOST - 1>(rows, body);
  }
  body(Width<MOST>{});
}

// Rows [first, a.rows) in tiles of about the same height.
inline void wide_rows(const MatmulArgs& a, int first, int tiles, int block, const float* w, int from,
                      int depth) {
  for (int tile = 0, row = first; tile < tiles; ++tile) {
    const int end = first + (a.rows - first) * (tile + 1) / tiles;
    for_rows<kWideRows>(
        end - row, [&](auto rows) { wide_sums<decltype(rows)::kBlocks>(a, row, block, w, from, depth); });
    row = end;
  }
}

// Few rows use each line of w once.
template <int ROWS>
inline void pair_rows(const MatmulArgs& a) {
  int block = 0;
  const auto blocks = [&](auto width) {
    constexpr int kBlocks = decltype(width)::kBlocks;
    if constexpr (kBlocks <= pair_blocks_of(ROWS)) {
      for (; block + kBlocks <= a.num_blocks; block += kBlocks) {
        pair_sums<ROWS, kBlocks, false>(a, block, 0, a.k, nullptr);
      }
    }
  };
  blocks(Width<4>{});
  blocks(Width<2>{});
  blocks(Width<1>{});
}

// MatmulArgs with kStore, no bias, and whole blocks.
inline void wide_matmul_bf16(const MatmulArgs& a) {
  if (a.rows <= kPairRows) {
    return for_rows<kPairRows>(a.rows, [&](auto rows) { pair_rows<decltype(rows)::kBlocks>(a); });
  }
  alignas(64) float wide[kWideDepth * kLanes];
  const int tiles = a.rows / kWideRows + 1, first = a.rows / tiles;  // of which the first widens
  for (int block = 0; block < a.num_blocks; ++block) {
    for (int from = 0; from < a.k; from += kWideDepth) {
      const int depth = a.k - from < kWideDepth ? a.k - from : kWideDepth;
      for_rows<kPairRows>(first, [&](auto rows) {
        pair_sums<decltype(rows)::kBlocks, 1, true>(a, block, from, depth, wide);
      });
      wide_rows(a, first, tiles - 1, block, wide, from, depth);
    }
  }
}

inline void wide_matmul_fp32(const MatmulArgs& a) {
  const auto* w = static_cast<const float*>(a.w);
  for (int block = 0; block < a.num_blocks; ++block) {
    wide_rows(a, 0, (a.rows + kWideRows - 1) / kWideRows, block, w + block * a.w_stride, 0, a.k);
  }
}

// bf16 kept as fp32 of the same value.
inline void convert_wide(const float* x, float factor, int n, void* out) {
  float* y = static_cast<float*>(out);
  for (int i = 0; i < n; i += kLanes) {
    const int count = n - i < kLanes ? n - i : kLanes;
    uint16_t rounded[kLanes] = {};
    float lane[kLanes];
    convert<uint16_t>(x + i, factor, count, rounded);
    store(lane, load_as(rounded));
    for (int j = 0; j < count; ++j) y[i + j] = lane[j];
  }
}

constexpr Kernels wide_table(DType dtype) {
  const bool is_bf16 = dtype == DType::kBfloat16;
  Kernels table = is_bf16 ? kBfloat16Table : kFloat32Table;
  table.matmul_any_k = is_bf16 ? wide_matmul_bf16 : wide_matmul_fp32;
  if (is_bf16) {
    table.query_dtype = DType::kFloat32;
    table.softmax = softmax<uint16_t, float>;
    table.convert_query = convert_wide;
  }
  return table;
}

constexpr Kernels kWideBfloat16Table = wide_table(DType::kBfloat16);
constexpr Kernels kWideFloat32Table = wide_table(DType::kFloat32);
