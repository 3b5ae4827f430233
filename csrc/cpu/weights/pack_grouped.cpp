#include "cpu/weights/pack_grouped.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/failure.h"

namespace pearl {
namespace {

constexpr int kGroup = 32;  // inputs to a scale, where rows are rounded

// A column of a matrix of codes.
struct Column {
  std::vector<int> codes;                  // [k]
  std::vector<uint16_t> scales, minimums;  // fp16 [k / group]
};

uint16_t half_of(float x) {  // round to nearest even; infinity beyond fp16
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), sign = bits >> 16 & 0x8000;
  uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
  if (magnitude < 0x38800000) {  // a multiple of 2^-24, the last bit of 0.5
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3F000000));
  }
  magnitude += 0xC8000FFF + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | magnitude >> 13);
}

// The integers nearest to (x - offset) / scale within [low, high]; zeros for a scale of zero.
void round_group(const float* x, int n, float scale, float offset, float low, float high, int* codes) {
  const float magic = 0x1.8p+23f;  // adding 1.5 * 2^23 rounds to an integer
  for (int i = 0; i < n; ++i) {
    const float step = scale > 0 ? (x[i] - offset) / scale : 0.0f;
    const float near = std::min(std::max(step, low - 1), high + 1);
    codes[i] = static_cast<int>(std::min(std::max((near + magic) - magic, low), high));
  }
}

void round_row(const SourceTensor& tensor, const float* x, int64_t k, const GroupForm& form, int bits,
               Column* column) {
  const int repeats = kGroup / form.group;
  for (int64_t from = 0; from < k; from += kGroup) {
    const int n = static_cast<int>(std::min<int64_t>(kGroup, k - from));
    float smallest = x[from], largest = x[from];
    bool usable = true;
    for (int i = 0; i < n; ++i) {
      smallest = std::min(smallest, x[from + i]);
      largest = std::max(largest, x[from + i]);
      usable = usable && std::isfinite(x[from + i]);
    }
    const uint16_t minimum = bits == 4 ? half_of(smallest) : 0;
    const float offset = float_of_half(minimum);
    const float step = bits == 8 ? std::max(-smallest, largest) / 127.0f : (largest - offset) / 15.0f;
    const uint16_t scale = half_of(std::max(0.0f, step));
    if (!usable || !std::isfinite(offset) || !std::isfinite(float_of_half(scale))) {
      throw Failure(FailureKind::kCheckpoint,
                    "tensor '" + tensor.name +
                        "' has weights that are NaN, infinite or beyond fp16, which "
                        "cannot have " +
                        std::to_string(bits) + " bits: load it with weights='auto'");
    }
    round_group(x + from, n, float_of_half(scale), offset, bits == 8 ? -127.0f : 0.0f,
                bits == 8 ? 127.0f : 15.0f, column->codes.data() + from);
    for (int i = 0; i < repeats; ++i) {
      column->scales[from / kGroup * repeats + i] = scale;
      column->minimums[from / kGroup * repeats + i] = minimum;
    }
  }
}

void copy_row(const SourceGroups& groups, int64_t row, int64_t k, const GroupForm& form, Column* column) {
  for (int64_t i = 0; i < k; ++i) {
    const int64_t at = row * k + i;
    column->codes[i] = groups.bits == 8 ? static_cast<const int8_t*>(groups.codes)[at]
                                        : static_cast<const uint8_t*>(groups.codes)[at] & 15;
  }
  const int64_t num_groups = (k + groups.group - 1) / groups.group;
  const int repeats = groups.group / form.group;
  for (int64_t g = 0; g < num_groups * repeats; ++g) {
    const int64_t at = row * num_groups + g / repeats;
    column->scales[g] = groups.scales[at];
    column->minimums[g] = groups.minimums ? groups.minimums[at] : 0;
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
  return tensor.groups && (bits == 0 || tensor.groups->bits <= bits) ? tensor.groups->bits : bits;
}
bool keeps_codes(const SourceTensor& tensor, int bits) {
  return tensor.groups && tensor.groups->bits == bits;
}

}  // namespace

std::optional<GroupForm> form_of(const std::vector<const SourceTensor*>& parts, int bits) {
  GroupForm form{4, kGroup, false};
  for (const SourceTensor* part : parts) {
    const int own = bits_of(*part, bits);
    if (own == 0) return {};
    form.bits = std::max(form.bits, own);
    form.has_minimums = form.has_minimums || own == 4;
    if (keeps_codes(*part, own)) {
      form.group = std::min(form.group, part->groups->group);
      form.has_minimums = form.has_minimums || part->groups->minimums;
    }
  }
  return form;
}

void pack_grouped_blocks(const PackedMatrix& matrix, const SourceRow* rows, int64_t source_k, int first,
                         int last, void* buffer) {
  const GroupForm& form = *matrix.form;
  const int64_t num_groups = matrix.k / form.group;
  const int groups_of_record = form.groups_of_record();
  Column column;
  std::vector<float> values(source_k);
  RowReader reader;
  for (int64_t block = first; block < last; ++block) {
    char* start = static_cast<char*>(buffer) + matrix.offset + block * matrix.block_bytes(DType::kFloat32);
    for (int c = 0; c < kLanes; ++c) {
      column.codes.assign(matrix.k, 0);
      column.scales.assign(num_groups, 0);
      column.minimums.assign(num_groups, 0);
      const SourceRow& source = rows[block * kLanes + c];
      if (source.tensor != nullptr) {
        const int bits = bits_of(*source.tensor, source.bits);
        if (keeps_codes(*source.tensor, bits)) {
          copy_row(*source.tensor->groups, source.row, source_k, form, &column);
        } else {
          reader.read(*source.tensor, source.row, 1, source_k, DType::kFloat32, values.data(), source_k);
          round_row(*source.tensor, values.data(), source_k, form, bits, &column);
        }
      }
      for (int64_t r = 0; r < matrix.k / kRecordDepth; ++r) {
        char* record = start + r * form.record_bytes();
        for (int i = 0; i < kRecordDepth; ++i) {
          const int code = column.codes[r * kRecordDepth + i];
          const CodePlace place = place_of(form, i, c);
          if (form.bits == 8) {
            record[place.byte] = static_cast<char>(code + 128);
          } else {
            record[place.byte] = static_cast<char>(record[place.byte] | code << (place.high ? 4 : 0));
          }
        }
        for (int g = 0; g < groups_of_record; ++g) {
          const int64_t at = r * groups_of_record + g, entry = 2 * (g * kLanes + c);
          std::memcpy(record + form.scales_offset() + entry, &column.scales[at], 2);
          if (form.has_minimums) {
            std::memcpy(record + form.minimums_offset() + entry, &column.minimums[at], 2);
          }
        }
      }
    }
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
