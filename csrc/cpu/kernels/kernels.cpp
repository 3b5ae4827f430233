#include "cpu/kernels/kernels.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/isa/isa.h"
#include "cpu/kernels/self_check.h"

namespace pearl {

const Kernels& kernels_of(const std::string& isa, DType dtype) {
  const std::vector<std::string> available = available_isas();
  const std::string& wanted = isa.empty() ? available.front() : isa;
  if (std::find(available.begin(), available.end(), wanted) == available.end()) {
    std::string list;
    for (const std::string& one : available) list += (list.empty() ? "" : ", ") + one;
    throw std::invalid_argument("instruction set '" + wanted + "' is not available here; there are: " + list);
  }
#if defined(__x86_64__)
  if (wanted == "amx") {
    // Once in a process, and again after a check that failed.
    static const Kernels& tiles =
        checked_kernels(amx_kernels(DType::kBfloat16), avx512_kernels(DType::kBfloat16));
    return dtype == DType::kBfloat16 ? tiles : amx_kernels(dtype);
  }
  if (wanted == "avx512") return avx512_kernels(dtype);
  if (wanted == "avx2") return avx2_kernels(dtype);
#endif
  return portable_kernels(dtype);
}

}  // namespace pearl
