// The matmul over weights in groups of 32 with tiles of 8-bit codes: included after cpu/kernels/
// tile_matmul_body.h. The file around it has also defined
//
//   set_code_tiles    from here on tiles 0 and 1 have 16 rows of 64 bytes, 4 and 5 have 16 rows of 32 bytes,
//                     6 and 7 have 8 rows of 64 bytes; configure_tiles ends it
//   tile_dot_codes    sums[m][n] += sum over 8 steps and 4 inputs of signed x[m][4 s + i] * unsigned w[s][4 n
//   + i] separate_halves   4 lines of halves -> 8 lines of codes: the low halves, then the high ones Totals
//   16 rows of 16 fp32 sums, with zero(), add_group() and store()
//
// The sums of a group are integers, and Totals adds them as matmul_body.h does: the bits are those of every
// other instruction set. Always 16 rows, as there. (No #pragma once, no #include: it is a body.)

constexpr int kTileGroup = 32;
constexpr int64_t kFetchTilesAhead = 4096;            // bytes between what is used and what is fetched
constexpr int64_t kGroupCodes = kTileGroup * kLanes;  // bytes of 8-bit codes of a group and a column block

// Where the factors of a group of each row are: an element a row, `apart` elements from row to row.
struct RowFactors {
  const float* scales;
  const int32_t* offsets;
  const float* sums;
  int64_t apart;
};

// The codes of group g of a record as 8 lines.
template <int BITS>
inline const char* codes_of(const char* record, int g, char* room) {
  if constexpr (BITS == 8) return record + g * kGroupCodes;
  separate_halves(record + g * kGroupCodes / 2, room);
  return room;
}

// The sums of 16 rows and one column block.
template <int BITS, bool MINIMUMS>
void tile_grouped_block(const char* x, int64_t x_stride, const char* w, int k, const char* end,
                        const char* next, float* sums) {
  const GroupForm form{BITS, kTileGroup, MINIMUMS};
  const GroupedRow row{k, kTileGroup};
  alignas(64) int32_t dots[2][kTileRows * kLanes];
  alignas(64) char rooms[2][kGroupCodes];
  const char* start = w;
  Totals totals;
  totals.zero();
  for (int from = 0; from < k; from += kRecordDepth) {
    const char* ahead = w + kFetchTilesAhead;
    if (ahead >= end) ahead = next ? next + (ahead - end) : start;
    for (int64_t line = 0; line < form.record_bytes(); line += 64) prefetch(ahead + line);
    tile_zero<0>();
    tile_load<4>(x + from, x_stride);
    tile_load<6>(codes_of<BITS>(w, 0, rooms[0]), 64);
    tile_dot_codes<0, 4, 6>();
    tile_store<0>(dots[0], 64);
    tile_zero<1>();
    tile_load<5>(x + from + kTileGroup, x_stride);
    tile_load<7>(codes_of<BITS>(w, 1, rooms[1]), 64);
    tile_dot_codes<1, 5, 7>();
    tile_store<1>(dots[1], 64);
    for (int g = 0; g < 2; ++g) {
      const int group = from / kTileGroup + g;
      const RowFactors factors{row.scales(x) + group, row.offsets(x) + group, row.sums(x) + group,
                               x_stride / 4};
      const char* scales = w + form.scales_offset() + 32 * g;
      totals.add_group<BITS == 8, MINIMUMS>(dots[g], scales, w + form.minimums_offset() + 32 * g, factors);
    }
    w += form.record_bytes();
  }
  totals.store(sums);
}

// Codes of fewer rows are as fast without tiles, and groups of 16 have none; the bits are the same.
constexpr int kRowsWithoutTiles = 8;

void tile_grouped_matmul(const GroupedMatmulArgs& a) {
  const MatmulArgs& out = a.out;
  if (out.rows <= kRowsWithoutTiles || a.form.group != kTileGroup) return base().grouped_matmul(a);
  alignas(64) float sums[kTileRows * kPanel * kLanes];
  const auto block = a.form.bits == 4      ? tile_grouped_block<4, true>
                     : a.form.has_minimums ? tile_grouped_block<8, true>
                                           : tile_grouped_block<8, false>;
  const int64_t block_bytes = out.k / kRecordDepth * a.form.record_bytes();
  const char* end = a.w + out.num_blocks * block_bytes;
  set_code_tiles();
  for (int first = 0; first < out.num_blocks; first += kPanel) {
    const int blocks = out.num_blocks - first < kPanel ? out.num_blocks - first : kPanel;
    for (int row = 0; row < out.rows; row += kTileRows) {
      const int rows = out.rows - row < kTileRows ? out.rows - row : kTileRows;
      for (int b = 0; b < blocks; ++b) {
        block(a.x + row * a.x_stride, a.x_stride, a.w + (first + b) * block_bytes, out.k, end,
              static_cast<const char*>(out.next_w), sums + b * kLanes);
      }
      base().finish(out, sums, row, rows, first, blocks);
    }
  }
  configure_tiles();
}
