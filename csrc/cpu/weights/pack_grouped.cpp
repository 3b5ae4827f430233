#include "cpu/weights/pack_grouped.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/failure.h"

namespace pearl {
namespace {

constexpr int kGroup = 32;  // inputs to a scale, where rows are rounded

// A row as a column of a matrix of codes: its bytes in the order of the column's words in the records.
struct Column {
  std::vector<uint8_t> codes;              // 8 bits: [k] code + 128; 4 bits: [k / 2] two codes, 16 apart
  std::vector<uint16_t> scales, minimums;  // fp16 [k / group]
};

// A row that was rounded.
struct RoundedRow {
  std::vector<uint8_t> codes;              // as CodedRows has them
  std::vector<uint16_t> scales, minimums;  // fp16 [ceil(k / 32)]
};

// The integers nearest to (x - offset) / scale within [low, high], for a scale above zero.
void round_group(const float* x, int n, float scale, float offset, float low, float high, uint8_t* codes) {
  const float magic = 0x1.8p+23f;  // adding 1.5 * 2^23 rounds to an integer
  for (int i = 0; i < n; ++i) {
    const float step = (x[i] - offset) / scale;
    const float near = std::min(std::max(step, low - 1), high + 1);
    const float code = std::min(std::max((near + magic) - magic, low), high);
    codes[i] = static_cast<uint8_t>(static_cast<int8_t>(static_cast<int>(code)));
  }
}

// The first of the smallest numbers, and the largest; whether all are finite.
struct Range {
  float smallest, largest;
  bool is_finite;
};
Range range_of(const float* x, int n) {
  constexpr int kStrands = 8;  // of the sums, so that the compiler makes vectors of them
  float smallest[kStrands], largest[kStrands], spoilt[kStrands] = {};
  for (int i = 0; i < kStrands; ++i) smallest[i] = largest[i] = x[0];
  int from = 0;
  for (; from + kStrands <= n; from += kStrands) {
    for (int i = 0; i < kStrands; ++i) {
      const float value = x[from + i];
      smallest[i] = value < smallest[i] ? value : smallest[i];
      largest[i] = largest[i] < value ? value : largest[i];
      spoilt[i] += value - value;  // NaN from a NaN or infinity on
    }
  }
  Range range{smallest[0], largest[0], true};
  for (int i = 0; i < kStrands; ++i) {
    range.smallest = std::min(range.smallest, smallest[i]);
    range.largest = std::max(range.largest, largest[i]);
    range.is_finite = range.is_finite && spoilt[i] == 0.0f;
  }
  for (; from < n; ++from) {
    range.smallest = std::min(range.smallest, x[from]);
    range.largest = std::max(range.largest, x[from]);
    range.is_finite = range.is_finite && std::isfinite(x[from]);
  }
  for (int i = n - 1; i >= 0 && range.smallest == 0.0f; --i) {
    if (x[i] == 0.0f) range.smallest = x[i];  // the first: 0 and -0 are two codes
  }
  return range;
}

// Into rows of codes with a group of 32, as pearl_rt/reference/groups.py rounds.
void round_row(const SourceTensor& tensor, const float* x, int64_t k, int bits, RoundedRow* row) {
  row->codes.assign(k, 0);
  row->scales.resize((k + kGroup - 1) / kGroup);
  row->minimums.resize(row->scales.size());
  for (int64_t from = 0; from < k; from += kGroup) {
    const int n = static_cast<int>(std::min<int64_t>(kGroup, k - from));
    const Range range = range_of(x + from, n);
    const uint16_t minimum = bits == 4 ? half_of(range.smallest) : 0;
    const float offset = float_of_half(minimum);
    const float step =
        bits == 8 ? std::max(-range.smallest, range.largest) / 127.0f : (range.largest - offset) / 15.0f;
    const uint16_t scale = half_of(std::max(0.0f, step));
    if (!range.is_finite || !std::isfinite(offset) || !std::isfinite(float_of_half(scale))) {
      throw Failure(FailureKind::kCheckpoint,
                    "tensor '" + tensor.name +
                        "' has weights that are NaN, infinite or beyond fp16, which "
                        "cannot have " +
                        std::to_string(bits) + " bits: load it with weights='auto'");
    }
    if (const float unit = float_of_half(scale); unit > 0) {
      round_group(x + from, n, unit, offset, bits == 8 ? -127.0f : 0.0f, bits == 8 ? 127.0f : 15.0f,
                  row->codes.data() + from);
    }
    row->scales[from / kGroup] = scale;
    row->minimums[from / kGroup] = minimum;
  }
}

// Two codes of 4 bits to a byte: the lower of `to` are codes [0, 16) of 32, the upper ones [16, 32).
void join_halves(const uint8_t* codes, uint8_t* to) {
  for (int i = 0; i < 16; ++i) to[i] = static_cast<uint8_t>((codes[i] & 15) | codes[i + 16] << 4);
}

// A row of `bits` in groups of `group` inputs as a column of that form, which holds it.
void fill_column(const CodedRows& row, int bits, int group, int64_t k, const GroupForm& form,
                 Column* column) {
  constexpr int kChunk = 32;
  const auto padded = static_cast<int64_t>(column->codes.size()) * (form.bits == 8 ? 1 : 2);
  const auto fill = [&](const uint8_t* codes, int64_t from) {
    uint8_t* to = column->codes.data() + (form.bits == 8 ? from : from / 2);
    if (form.bits == 4) return join_halves(codes, to);
    const int mask = bits == 8 ? 0xFF : 15;
    for (int i = 0; i < kChunk; ++i) to[i] = static_cast<uint8_t>((codes[i] & mask) + 128);
  };
  const int64_t whole = k / kChunk * kChunk;
  for (int64_t from = 0; from < whole; from += kChunk) fill(row.codes + from, from);
  for (int64_t from = whole; from < padded; from += kChunk) {
    uint8_t rest[kChunk] = {};
    for (int64_t i = from; i < k; ++i) rest[i - from] = row.codes[i];
    fill(rest, from);
  }
  const int64_t num_groups = (k + group - 1) / group;
  const int repeats = group / form.group;
  std::fill(column->scales.begin(), column->scales.end(), 0);
  std::fill(column->minimums.begin(), column->minimums.end(), 0);
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int i = 0; i < repeats; ++i) {
      column->scales[g * repeats + i] = row.scales[g];
      if (row.minimums) column->minimums[g * repeats + i] = row.minimums[g];
    }
  }
}

// One column block of 16 columns.
void interleave(const PackedMatrix& matrix, const Column* columns, char* out) {
  const GroupForm& form = *matrix.form;
  const int words = static_cast<int>(form.scales_offset()) / 4 / kLanes;  // of a column in a record
  const int groups = form.groups_of_record();
  for (int64_t r = 0; r < matrix.k / kRecordDepth; ++r, out += form.record_bytes()) {
    for (int word = 0; word < words; ++word) {
      for (int c = 0; c < kLanes; ++c) {
        std::memcpy(out + (word * kLanes + c) * 4, columns[c].codes.data() + (r * words + word) * 4, 4);
      }
    }
    for (int g = 0; g < groups; ++g) {
      for (int c = 0; c < kLanes; ++c) {
        const int64_t entry = 2 * (g * kLanes + c);
        std::memcpy(out + form.scales_offset() + entry, &columns[c].scales[r * groups + g], 2);
        if (form.has_minimums) {
          std::memcpy(out + form.minimums_offset() + entry, &columns[c].minimums[r * groups + g], 2);
        }
      }
    }
  }
}

// Byte of a record, and whether its high half, where code i of a column lies.
struct CodePlace {
  int64_t byte;
  bool high;
};
CodePlace place_of(const GroupForm& form, int i, int column) {
  if (form.bits == 8) return {(i / 4 * kLanes + column) * 4 + i % 4, false};
  const int within = i % 16;
  return {((i / 32 * 4 + within / 4) * kLanes + column) * 4 + within % 4, i % 32 >= 16};
}

int bits_of(const SourceTensor& tensor, int bits) {  // that its rows get
  return tensor.form && (bits == 0 || tensor.form->bits <= bits) ? tensor.form->bits : bits;
}
bool keeps_codes(const SourceTensor& tensor, int bits) { return tensor.form && tensor.form->bits == bits; }

}  // namespace

std::optional<GroupForm> form_of(const std::vector<const SourceTensor*>& parts, int bits) {
  GroupForm form{4, kGroup, false};
  for (const SourceTensor* part : parts) {
    const int own = bits_of(*part, bits);
    if (own == 0) return {};
    form.bits = std::max(form.bits, own);
    form.has_minimums = form.has_minimums || own == 4;
    if (keeps_codes(*part, own)) {
      form.group = std::min(form.group, part->form->group);
      form.has_minimums = form.has_minimums || part->form->has_minimums;
    }
  }
  return form;
}

void pack_grouped_blocks(const PackedMatrix& matrix, const SourceRow* rows, int64_t source_k, int first,
                         int last, void* buffer) {
  const GroupForm& form = *matrix.form;
  const int64_t num_groups = matrix.k / form.group;
  Column empty;
  empty.codes.assign(form.bits == 8 ? matrix.k : matrix.k / 2, form.bits == 8 ? 128 : 0);
  empty.scales.assign(num_groups, 0);
  empty.minimums.assign(num_groups, 0);
  std::vector<Column> columns(kLanes, empty);
  std::vector<float> values(source_k);
  RoundedRow rounded;
  RowReader reader;
  for (int64_t block = first; block < last; ++block) {
    for (int c = 0; c < kLanes; ++c) {
      const SourceRow& source = rows[block * kLanes + c];
      if (source.tensor == nullptr) {
        columns[c] = empty;
        continue;
      }
      const SourceTensor& tensor = *source.tensor;
      const int bits = bits_of(tensor, source.bits);
      if (keeps_codes(tensor, bits)) {
        const CodedRows row = reader.codes(tensor, source.row, source_k);
        fill_column(row, bits, tensor.form->group, source_k, form, &columns[c]);
      } else {
        reader.read(tensor, source.row, 1, source_k, DType::kFloat32, values.data(), source_k);
        round_row(tensor, values.data(), source_k, bits, &rounded);
        fill_column({rounded.codes.data(), rounded.scales.data(), rounded.minimums.data()}, bits, kGroup,
                    source_k, form, &columns[c]);
      }
    }
    interleave(matrix, columns.data(),
               static_cast<char*>(buffer) + matrix.offset + block * matrix.block_bytes(DType::kFloat32));
  }
}

void unpack_grouped_row(const PackedMatrix& matrix, const void* buffer, int64_t row, int source_k,
                        float* out) {
  const GroupForm& form = *matrix.form;
  const int column = static_cast<int>(row % kLanes);
  const char* start =
      static_cast<const char*>(buffer) + matrix.offset + row / kLanes * matrix.block_bytes(DType::kFloat32);
  for (int i = 0; i < source_k; ++i) {
    const int within = i % kRecordDepth;
    const char* record = start + i / kRecordDepth * form.record_bytes();
    const CodePlace place = place_of(form, within, column);
    const int byte = static_cast<uint8_t>(record[place.byte]);
    const int code = form.bits == 8 ? byte - 128 : place.high ? byte >> 4 : byte & 15;
    const int64_t entry = within / form.group * kLanes + column;
    out[i] =
        float_of_half(unaligned<uint16_t>(record + form.scales_offset(), entry)) * static_cast<float>(code);
    if (form.has_minimums)
      out[i] += float_of_half(unaligned<uint16_t>(record + form.minimums_offset(), entry));
  }
}

}  // namespace pearl
