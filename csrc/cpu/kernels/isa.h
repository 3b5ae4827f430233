// Which instruction sets the kernels can use on this machine. Reads no environment.
#pragma once

#include <string>
#include <vector>

namespace pearl {

enum class Isa { kPortable, kAvx2, kAvx512, kAmx, kAmxEmulated };

// "portable", "avx2", "avx512" (with bf16), "amx", and for tests "amx_emulated".
const char* name_of(Isa isa);

// Names that run here, fastest first; always ends with "portable". The emulated tiles are not listed.
std::vector<std::string> available_isas();

// The isa of that name; the fastest for an empty one. Throws std::invalid_argument with what is available.
Isa choose_isa(const std::string& name);

}  // namespace pearl
