// The matmul over weights in groups, once for every instruction set: included by kernels_body.h. The file
// around it has defined Ints (16 int32 sums), Codes (4 inputs of 16 columns) and their arithmetic, HalfSums
// (sums over a group of 32 with codes of 4 bits, which int16 holds two inputs at a time: 8 steps of at most
// 2 * 15 * 127), any_not_finite, and kGroupedRows. (No #pragma once, no #include: it is a body.)

// Bytes between what is used and what is fetched: into the second-level cache, as a first-level cache has too
// few places for lines on their way, and each line would wait for one.
constexpr int64_t kFetchAhead = 16384;

// One column block of some rows, and what is fetched meanwhile.
struct GroupedBlock {
  const char* x;
  int64_t x_stride;
  const char* w;
  int k;
  const char* end;   // of this thread's share of the matrix
  const char* next;  // what it reads afterwards, or null
  float* sums;       // row m at sums + m * kPanel * kLanes
};

template <int BITS, int GROUP, bool MINIMUMS, int ROWS>
void grouped_block(const GroupedBlock& a) {
  const GroupForm form{BITS, GROUP, MINIMUMS};
  const GroupedRow row{a.k, GROUP};
  const float* scales = row.scales(a.x);
  const int32_t* offsets = row.offsets(a.x);
  const float* sums = row.sums(a.x);
  const int64_t apart = a.x_stride / 4;  // of two rows' scales
  Vec total[ROWS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) total[m] = set1(0.0f);
  const char* w = a.w;
  for (int from = 0; from < a.k; from += kRecordDepth) {
    const char* ahead = w + kFetchAhead;
    if (ahead >= a.end) ahead = a.next ? a.next + (ahead - a.end) : a.w;
    for (int64_t line = 0; line < form.record_bytes(); line += 64) prefetch(ahead + line);
#pragma GCC unroll 1
    for (int g = 0; g < kRecordDepth / GROUP; ++g) {
      const int group = from / GROUP + g;
      const char* x = a.x + from + g * GROUP;
      Ints dots[ROWS];
      if constexpr (BITS == 8) {
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) dots[m] = from_offset(offsets[m * apart + group]);
#pragma GCC unroll 8
        for (int step = 0; step < GROUP / 4; ++step) {
          const Codes codes = load_codes(w + (g * (GROUP / 4) + step) * 64);
#pragma GCC unroll 8
          for (int m = 0; m < ROWS; ++m)
            dots[m] = dot_of_bytes(dots[m], codes, x + m * a.x_stride + 4 * step);
        }
      } else {
        HalfSums halves[ROWS];
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) halves[m] = no_half_sums();
#pragma GCC unroll 4
        for (int step = 0; step < 4; ++step) {
          const Codes both = load_codes(w + (g * 4 + step) * 64);
          const Codes low = low_halves(both), high = high_halves(both);
#pragma GCC unroll 8
          for (int m = 0; m < ROWS; ++m)
            halves[m] = with_products(halves[m], low, x + m * a.x_stride + 4 * step);
#pragma GCC unroll 8
          for (int m = 0; m < ROWS; ++m)
            halves[m] = with_products(halves[m], high, x + m * a.x_stride + 4 * step + 16);
        }
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) dots[m] = ints_of(halves[m]);
      }
      const Vec scale = load_half(w + form.scales_offset() + 32 * g);
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; ++m) {
        total[m] = fused(to_floats(dots[m]), mul(scale, set1(scales[m * apart + group])), total[m]);
      }
      if constexpr (MINIMUMS) {
        const Vec minimum = load_half(w + form.minimums_offset() + 32 * g);
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) {
          total[m] = fused(minimum, set1(sums[m * apart + group]), total[m]);
        }
      }
    }
    w += form.record_bytes();
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) store(a.sums + m * kPanel * kLanes, total[m]);
}

// grouped_block for 1..ROWS rows known only now.
template <int BITS, int GROUP, bool MINIMUMS, int ROWS>
inline void grouped_rows(int rows, const GroupedBlock& block) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return grouped_rows<BITS, GROUP, MINIMUMS, ROWS - 1>(rows, block);
  }
  grouped_block<BITS, GROUP, MINIMUMS, ROWS>(block);
}

using GroupedRows = void (*)(int rows, const GroupedBlock&);

inline GroupedRows grouped_rows_of(const GroupForm& form) {
  if (form.bits == 4) return grouped_rows<4, 32, true, kGroupedRows>;
  if (form.group == 32) {
    return form.has_minimums ? grouped_rows<8, 32, true, kGroupedRows>
                             : grouped_rows<8, 32, false, kGroupedRows>;
  }
  return form.has_minimums ? grouped_rows<8, 16, true, kGroupedRows>
                           : grouped_rows<8, 16, false, kGroupedRows>;
}

template <class T>
void grouped_matmul(const GroupedMatmulArgs& a) {
  alignas(64) float tile[kGroupedRows * kPanel * kLanes];
  const GroupedRows body = grouped_rows_of(a.form);
  const MatmulArgs& out = a.out;
  const int64_t block_bytes = out.k / kRecordDepth * a.form.record_bytes();
  const char* end = a.w + out.num_blocks * block_bytes;
  const int tiles = (out.rows + kGroupedRows - 1) / kGroupedRows;  // of about the same height
  for (int first = 0; first < out.num_blocks; first += kPanel) {
    const int blocks = out.num_blocks - first < kPanel ? out.num_blocks - first : kPanel;
    for (int t = 0; t < tiles; ++t) {
      const int row = out.rows * t / tiles, rows = out.rows * (t + 1) / tiles - row;
      for (int b = 0; b < blocks; ++b) {
        body(rows, {a.x + row * a.x_stride, a.x_stride, a.w + (first + b) * block_bytes, out.k, end,
                    static_cast<const char*>(out.next_w), tile + b * kLanes});
      }
      finish<T>(out, tile, row, rows, first, blocks);
    }
  }
}

// The first `count` of 16 elements, then zeros.
template <class T>
inline Vec load_some(const T* x, int count) {
  if (count >= kLanes) return load_as(x);
  T rest[kLanes] = {};
  for (int i = 0; i < count; ++i) rest[i] = x[i];
  return load_as(rest);
}

// quantize_row for groups of 16 VECTORS inputs.
template <class T, int VECTORS>
void quantize_groups(const T* x, int n, const GroupedRow& row, char* out) {
  float* scales = const_cast<float*>(row.scales(out));
  int32_t* offsets = const_cast<int32_t*>(row.offsets(out));
  float* sums = const_cast<float*>(row.sums(out));
  const Vec magic = set1(0x1.8p+23f);  // adding 1.5 * 2^23 rounds to an integer, which the low bits then are
  const int64_t num_groups = row.num_groups();
  for (int64_t g = 0; g < num_groups; ++g) {
    const int from = static_cast<int>(g) * VECTORS * kLanes;
    Vec value[VECTORS], largest = set1(0.0f), sum = set1(0.0f);
    bool is_bad = false;
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      value[v] = load_some(x + from + v * kLanes, n - from - v * kLanes);
      largest = max(largest, max(value[v], sub(set1(0.0f), value[v])));
      is_bad |= any_not_finite(value[v]);
    }
    const float most = max_lanes(largest);
    const bool used = !is_bad && most >= 0x1p-100f;
    const Vec inverse = set1(used ? 127.0f / most : 0.0f);
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      const Vec shifted = used ? add(mul(value[v], inverse), magic) : magic;
      sum = add(sum, sub(shifted, magic));
      store_low_bytes(out + from + v * kLanes, shifted);
    }
    const float total = sum_lanes(sum);
    scales[g] = is_bad ? __builtin_nanf("") : used ? most * (1.0f / 127.0f) : 0.0f;
    offsets[g] = -128 * static_cast<int32_t>(total);
    sums[g] = scales[g] * total;
  }
}

template <class T>
void quantize_row(const void* elements, int n, const GroupedRow& row, char* out) {
  const T* x = static_cast<const T*>(elements);
  row.group == kLanes ? quantize_groups<T, 1>(x, n, row, out) : quantize_groups<T, 2>(x, n, row, out);
}
