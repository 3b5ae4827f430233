// Which instruction sets the kernels can use on this machine. Reads no environment.
#pragma once

#include <string>
#include <vector>

namespace pearl {

// Names that run here, fastest first: "amx", "avx512" (with bf16 and vnni), "avx2", and always "portable" at
// the end.
std::vector<std::string> available_isas();

}  // namespace pearl
