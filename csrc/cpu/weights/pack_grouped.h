// Matrices of codes in the order in which the kernels read them: from tensors that have codes, or rounded to
// the nearest code as pearl_rt/reference/groups.py does it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/weights/pack.h"

namespace pearl {

// The form that holds all rows of some tensors, which are packed as one matrix. bits: 8 or 4, to which what
// is wider is rounded; 0: tensors stay as they are. None: elements.
std::optional<GroupForm> form_of(const std::vector<const SourceTensor*>& parts, int bits);

// As pack_blocks and unpack_row, for a matrix that has a form.
void pack_grouped_blocks(const PackedMatrix& matrix, const SourceRow* rows, int64_t source_k, int first,
                         int last, void* buffer);
void unpack_grouped_row(const PackedMatrix& matrix, const void* buffer, int64_t row, int source_k,
                        float* out);

}  // namespace pearl
