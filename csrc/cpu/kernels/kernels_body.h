// The kernels themselves, once for every instruction set: included inside the anonymous namespace of a
// kernels_*.cpp, which has defined Vec (16 fp32 lanes), its arithmetic, sum_lanes (a fixed tree: lanes 8
// apart, then 4, 2 and 1), max_lanes (any lane, where one is NaN), Weights, kIsa, kMaxRows and blocks_of.
// Nothing in here may have external linkage: the linker would keep one copy, for one instruction set, for
// all. (No #pragma once, no #include: it is a body.)

#if defined(__GNUC__)
// Keeps the compiler from making a register of each row's address.
#define PEARL_OPAQUE(x) __asm__ volatile("" : "+r"(x))
#else
#define PEARL_OPAQUE(x)
#endif

inline void store_as(float* p, Vec a) { store(p, a); }
inline Vec load_as(const float* p) { return load(p); }
// a, a result of exp_vecs, rounded to T; returns what was kept.
template <class T>
inline Vec keep_exp(T* p, Vec a, T) {
  store_as(p, a);
  return load_as(p);
}

constexpr int pair_of(const uint16_t*) { return 2; }  // elements of K in one step
constexpr int pair_of(const float*) { return 1; }

// exp(x) of N vectors to 2 ulp, for x up to 88; 0 < result from x = -87 down (clamped there). NaN stays NaN.
// Step by step for all: a chain is longer than what a processor looks ahead.
template <int N>
inline void exp_vecs(Vec (&x)[N]) {
  const Vec magic = set1(0x1.8p+23f);  // adding 1.5 * 2^23 rounds to an integer
  Vec n[N], series[N];
#define PEARL_EACH_VEC _Pragma("GCC unroll 4") for (int i = 0; i < N; ++i)
  PEARL_EACH_VEC x[i] = max(set1(-87.0f), x[i]);
  PEARL_EACH_VEC n[i] = sub(add(mul(x[i], set1(0x1.715476p+0f)), magic), magic);
  PEARL_EACH_VEC x[i] = fma(n[i], set1(-0x1.62e3p-1f), x[i]);
  PEARL_EACH_VEC x[i] = fma(n[i], set1(-0x1.2fefa2p-17f), x[i]);
  PEARL_EACH_VEC series[i] = set1(1.0f / 720.0f);
  for (const float term : {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) {
    PEARL_EACH_VEC series[i] = fma(series[i], x[i], set1(term));
  }
  PEARL_EACH_VEC x[i] = scale_by_power(series[i], n[i]);
#undef PEARL_EACH_VEC
}

inline Vec exp_vec(Vec x) {
  Vec one[1] = {min(set1(88.0f), x)};
  exp_vecs(one);
  return one[0];
}

inline Vec silu(Vec x) { return div(x, add(set1(1.0f), exp_vec(sub(set1(0.0f), x)))); }

// What is fetched beside each line of w that is used; see MatmulArgs::from_memory.
template <class T>
struct Ahead {
  const T* next;   // what is read after this panel; its lines in memory order, unless near
  int64_t stride;  // elements from block to block of it
  bool near;       // fetch kNear steps ahead in each block, into the first-level cache
};
constexpr int kNear = 16;
constexpr int kNearRows = 2;  // with more rows arithmetic hides the second-level cache

template <int BLOCKS>
struct Width {
  static constexpr int kBlocks = BLOCKS;
};

// Where raw sums go, row m from at + m * stride on; `continues`: they go on from what is there.
struct Sums {
  float* at;
  int64_t stride;
  bool continues;
};

// Raw sums of ROWS rows and BLOCKS column blocks.
template <int ROWS, int BLOCKS, bool NEAR, class T>
inline void accumulate(const T* x, int64_t x_stride, const T* w, int64_t w_stride, int k, const T* next,
                       int64_t next_stride, const Sums& sums) {
  constexpr int kStep = pair_of(static_cast<const T*>(nullptr));
  constexpr int kLine = kStep * kLanes;  // elements of w in one step: 64 bytes
  Vec sum[ROWS][BLOCKS];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 4
    for (int b = 0; b < BLOCKS; ++b) sum[m][b] = set1(0.0f);
  }
  if (sums.continues) {
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 4
      for (int b = 0; b < BLOCKS; ++b) sum[m][b] = load(sums.at + m * sums.stride + b * kLanes);
    }
  }
  const T* x8 = x + 8 * x_stride;
  int64_t x3 = 3 * x_stride, x5 = 5 * x_stride, x7 = 7 * x_stride, w3 = 3 * w_stride;
  PEARL_OPAQUE(x3);
  PEARL_OPAQUE(x5);
  PEARL_OPAQUE(x7);
  PEARL_OPAQUE(w3);
  const int steps = k / kStep;
  const int first_steps = NEAR && steps > kNear ? steps - kNear : 0;
  const T* ahead = NEAR ? w + kNear * kLine : next;
  int64_t ahead_stride = NEAR ? w_stride : kLine, ahead3 = NEAR ? w3 : 3 * kLine;
  for (int part = NEAR ? 0 : 1; part < 2; ++part) {
    if (NEAR && part == 1) {
      ahead = next;
      ahead_stride = next_stride;
      ahead3 = 3 * next_stride;
    }
    for (int left = part == 0 ? first_steps : steps - first_steps; left > 0; --left) {
      decltype(load_weights(w)) weights[BLOCKS];
      const int64_t w_at[4] = {0, w_stride, 2 * w_stride, w3};
      const int64_t ahead_at[4] = {0, ahead_stride, 2 * ahead_stride, ahead3};
#pragma GCC unroll 4
      for (int b = 0; b < BLOCKS; ++b) {
        weights[b] = load_weights(w + w_at[b]);
        const char* line = reinterpret_cast<const char*>(ahead + ahead_at[b]);
        NEAR ? prefetch_near(line) : prefetch(line);
      }
      const int64_t x_at[8] = {0, x_stride, 2 * x_stride, x3, 4 * x_stride, x5, 2 * x3, x7};
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        const T* row = (m < 8 ? x : x8) + x_at[m % 8];
#pragma GCC unroll 4
        for (int b = 0; b < BLOCKS; ++b) sum[m][b] = multiply_add(sum[m][b], weights[b], row);
      }
      x += kStep;
      x8 += kStep;
      w += kLine;
      ahead += NEAR ? kLine : BLOCKS * kLine;
      PEARL_OPAQUE(x);
      PEARL_OPAQUE(x8);
      PEARL_OPAQUE(w);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 4
    for (int b = 0; b < BLOCKS; ++b) store(sums.at + m * sums.stride + b * kLanes, sum[m][b]);
  }
}

// Column blocks of a panel: this one and the one being fetched fit into a second-level cache of 1 MiB.
constexpr int panel_blocks(int64_t k, int64_t element_bytes) {
  return k * element_bytes * kLanes * kPanel <= (384 << 10) ? kPanel : kPanel / 2;
}

// The raw sums of one panel, ROWS rows, in the widest tiles that fit.
template <int ROWS, bool NEAR, class T>
void panel(const T* x, int64_t x_stride, const T* w, int64_t w_stride, int k, int num_blocks,
           const Ahead<T>& ahead, const Sums& sums) {
  constexpr int kBlocks = blocks_of(ROWS);
  int b = 0;
  const auto tiles = [&](auto width) {
    constexpr int kWidth = decltype(width)::kBlocks;
    for (; b + kWidth <= num_blocks; b += kWidth) {
      const T* next = ahead.next + b * (NEAR ? ahead.stride : int64_t{k} * kLanes);
      accumulate<ROWS, kWidth, NEAR>(x, x_stride, w + b * w_stride, w_stride, k, next, ahead.stride,
                                     {sums.at + b * kLanes, sums.stride, sums.continues});
    }
  };
  tiles(Width<kBlocks>{});
  if constexpr (kBlocks > 2) tiles(Width<2>{});
  if constexpr (kBlocks > 1) tiles(Width<1>{});
}

// panel for 1..ROWS rows known only now.
template <int ROWS, class T>
inline void panel_of(int rows, const T* x, int64_t x_stride, const T* w, int64_t w_stride, int k,
                     int num_blocks, const Ahead<T>& ahead, const Sums& sums) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      panel_of<ROWS - 1>(rows, x, x_stride, w, w_stride, k, num_blocks, ahead, sums);
      return;
    }
  }
  if constexpr (ROWS <= kNearRows) {
    if (ahead.near) {
      panel<ROWS, true>(x, x_stride, w, w_stride, k, num_blocks, ahead, sums);
      return;
    }
  }
  panel<ROWS, false>(x, x_stride, w, w_stride, k, num_blocks, ahead, sums);
}

// The epilogue of raw sums, tile[m][16 kPanel].
template <class T>
void finish(const MatmulArgs& a, const float* tile, int first_row, int rows, int first_block,
            int num_blocks) {
  for (int m = 0; m < rows; ++m) {
    const float* sums = tile + m * kPanel * kLanes;
    const int64_t row = first_row + m;
    for (int b = 0; b < num_blocks; ++b) {
      const int column = (first_block + b) * kLanes;
      Vec sum = load(sums + b * kLanes);
      if (a.bias) sum = add(sum, load(a.bias + column));
      if (a.epilogue == Epilogue::kSiluMul) {
        if (b % 2 == 0) continue;
        Vec gate = load(sums + (b - 1) * kLanes);
        if (a.bias) gate = add(gate, load(a.bias + column - kLanes));
        T* out = static_cast<T*>(a.out) + row * a.out_stride + (column - kLanes) / 2;
        store_as(out, mul(silu(gate), sum));
        continue;
      }
      float* out =
          a.out_rows ? a.out_rows[row] + a.out_column : static_cast<float*>(a.out) + row * a.out_stride;
      if (a.epilogue == Epilogue::kAdd) {
        store(out + column, add(load(out + column), sum));
        continue;
      }
      if (column + kLanes <= a.num_cols) {
        store(out + column, sum);
      } else {
        float lane[kLanes];
        store(lane, sum);
        for (int i = 0; column + i < a.num_cols; ++i) out[column + i] = lane[i];
      }
    }
  }
}

// Whether raw sums are the outputs, with no epilogue.
inline bool stores_sums(const MatmulArgs& a) {
  return a.epilogue == Epilogue::kStore && !a.bias && !a.out_rows && a.num_blocks * kLanes <= a.num_cols;
}

// `continues` is for sums that are the outputs.
template <class T>
void matmul(const MatmulArgs& a) {
  alignas(64) float tile[kMaxRows * kPanel * kLanes];
  const T* x = static_cast<const T*>(a.x);
  const T* w = static_cast<const T*>(a.w);
  const bool packed = a.w_stride == int64_t{a.k} * kLanes;  // else memory order is not the order of use
  const bool direct = stores_sums(a);
  const int width = panel_blocks(a.k, sizeof(T));
  for (int first = 0; first < a.num_blocks; first += width) {
    const int blocks = a.num_blocks - first < width ? a.num_blocks - first : width;
    const bool last = first + width >= a.num_blocks || (!packed && a.from_memory);
    const T* here = w + first * a.w_stride;
    const T* after = last ? static_cast<const T*>(a.next_w) : here + width * a.w_stride;
    for (int row = 0; row < a.rows; row += kMaxRows) {
      const int rows = a.rows - row < kMaxRows ? a.rows - row : kMaxRows;
      const bool again = row > 0 || after == nullptr;  // nothing more to fetch than what is here
      const Ahead<T> ahead = {again ? here : after, !again && last ? a.next_w_stride : a.w_stride,
                              !a.from_memory};
      Sums sums{tile, kPanel * kLanes, false};
      if (direct) {
        float* const out = static_cast<float*>(a.out) + row * a.out_stride + first * kLanes;
        sums = {out, a.out_stride, a.continues};
      }
      panel_of<kMaxRows>(rows, x + row * a.x_stride, a.x_stride, here, a.w_stride, a.k, blocks, ahead, sums);
      if (!direct) finish<T>(a, tile, row, rows, first, blocks);
    }
  }
}

// Query: what p is kept in, T's values.
template <class T, class Query = T>
void softmax(const SoftmaxArgs& a) {
  const int padded = (a.num_positions + kLanes - 1) / kLanes * kLanes;
  const Vec scale = set1(a.scale);
  for (int m = 0; m < a.rows; ++m) {
    const float* scores = a.scores + m * a.stride;
    Query* p = static_cast<Query*>(a.p) + m * a.stride;
    const int visible = a.visible[m];
    const int whole = visible / kLanes * kLanes;
    Vec best = set1(-__builtin_inff());
    for (int i = 0; i < whole; i += kLanes) best = max(best, load(scores + i));
    if (whole < visible) {
      best = max(best, first_lanes(load(scores + whole), visible - whole, -__builtin_inff()));
    }
    const Vec top = set1(max_lanes(best));
    Vec sum = set1(0.0f);
    int i = 0;
    for (; i + 2 * kLanes <= whole; i += 2 * kLanes) {
      Vec e[2] = {mul(sub(load(scores + i), top), scale), mul(sub(load(scores + i + kLanes), top), scale)};
      exp_vecs(e);
      sum = add(sum, keep_exp(p + i, e[0], T{}));
      sum = add(sum, keep_exp(p + i + kLanes, e[1], T{}));
    }
    for (; i < visible; i += kLanes) {
      Vec e[1] = {mul(sub(load(scores + i), top), scale)};
      exp_vecs(e);
      sum =
          add(sum, keep_exp(p + i, visible - i < kLanes ? first_lanes(e[0], visible - i, 0.0f) : e[0], T{}));
    }
    for (; i < padded; i += kLanes) store_as(p + i, set1(0.0f));
    a.inverse_sum[m] = 1.0f / sum_lanes(sum);
  }
}

template <class T>
void rms_norm(const float* x, const float* weight, int n, float eps, void* out) {
  Vec squares = set1(0.0f);
  for (int i = 0; i < n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  const Vec scale = set1(1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(n) + eps));
  T* y = static_cast<T*>(out);
  for (int i = 0; i < n; i += kLanes) store_as(y + i, mul(mul(load(x + i), scale), load(weight + i)));
}

template <class T>
void convert(const float* x, float factor, int n, void* out) {
  T* y = static_cast<T*>(out);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store_as(y + i, mul(load(x + i), set1(factor)));
  if (i < n) {
    float lane[kLanes] = {};
    T rounded[kLanes];
    for (int j = 0; i + j < n; ++j) lane[j] = x[i + j];
    store_as(rounded, mul(load(lane), set1(factor)));
    for (int j = 0; i + j < n; ++j) y[i + j] = rounded[j];
  }
}

#undef PEARL_OPAQUE

#include "cpu/kernels/grouped/matmul_body.h"

// What the matmul of one row does to memory and nothing else: four streams of `lines` cache lines in all are
// read while the same number after them is fetched. Returns the sum of their fp32 words.
float read_panel(const char* data, int64_t lines) {
  const int64_t stream = lines / 4 * 64;  // bytes
  Vec sum[4] = {set1(0.0f), set1(0.0f), set1(0.0f), set1(0.0f)};
  const char* ahead = data + lines * 64;
  for (int64_t at = 0; at < stream; at += 64) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      prefetch(ahead + s * 64);
      sum[s] = add(sum[s], load(reinterpret_cast<const float*>(data + s * stream + at)));
    }
    ahead += 4 * 64;
  }
  return sum_lanes(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

template <class T>
constexpr Kernels make_table(DType dtype) {
  return {kIsa,       dtype,       dtype,      nullptr,    matmul<T>,       matmul<T>,         finish<T>,
          softmax<T>, rms_norm<T>, convert<T>, convert<T>, quantize_row<T>, grouped_matmul<T>, read_panel};
}

constexpr Kernels kBfloat16Table = make_table<uint16_t>(DType::kBfloat16);
constexpr Kernels kFloat32Table = make_table<float>(DType::kFloat32);

inline const Kernels& table_of(DType dtype) {
  return dtype == DType::kBfloat16 ? kBfloat16Table : kFloat32Table;
}
