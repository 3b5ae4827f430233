#include "cpu/machine/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/checks.h"
#include "cpu/kernels/kernels.h"
#include "cpu/machine/memory.h"

namespace pearl {

namespace {

constexpr double kLongestSeconds = 3600;

}  // namespace

double measure_bandwidth(CoreSet& core_set, int64_t bytes, double seconds) {
  constexpr int64_t kPanel = 96 * 1024;  // four streams of a panel, then the next: as a matmul goes
  check_number("seconds", seconds, seconds >= 0 && seconds <= kLongestSeconds, "0 to 3600");
  const int64_t panels = bytes / core_set.size() / kPanel;
  if (panels < 1) {
    throw std::invalid_argument("bytes is " + std::to_string(bytes) + "; at least " +
                                std::to_string(kPanel * core_set.size()) + " for " +
                                std::to_string(core_set.size()) + " cores");
  }
  const int64_t own = panels * kPanel;  // of each core
  const HugeBuffer buffer(own * core_set.size() + kPanel, "the bandwidth measurement");
  const Kernels& kernels = kernels_of("", DType::kFloat32);
  std::vector<float> sums(core_set.size() * 16);
  core_set.run([&](int index) {  // pages that were never written are all the same page
    std::memset(buffer.as<char>(index * own), 0, own);
  });
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double best = 0;
  for (int pass = 0; pass < 2 || std::chrono::duration<double>(Clock::now() - start).count() < seconds;
       ++pass) {
    const auto begin = Clock::now();
    core_set.run([&](int index) {
      for (int64_t i = 0; i < panels; ++i) {
        sums[index * 16] += kernels.read_panel(buffer.as<char>(index * own + i * kPanel), kPanel / 64);
      }
    });
    const double taken = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, static_cast<double>(own * core_set.size()) / taken);
  }
  volatile float keep = 0;  // so that the reads are not dropped
  for (float sum : sums) keep = keep + sum;
  return best;
}

}  // namespace pearl
