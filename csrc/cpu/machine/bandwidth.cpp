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
  const int size = core_set.size();
  const int64_t panels = bytes / size / kPanel;  // of each core
  if (panels < 1) {
    throw std::invalid_argument("bytes is " + std::to_string(bytes) + "; at least " +
                                std::to_string(kPanel * core_set.size()) + " for " +
                                std::to_string(core_set.size()) + " cores");
  }
  const int64_t own = panels * kPanel;  // of each core
  const HugeBuffer buffer(own * size + kPanel, "the bandwidth measurement");
  const Kernels& kernels = kernels_of("", DType::kFloat32);
  std::vector<float> sums(size * 16);
  const int64_t most = CoreSet::kMostItems / size;
  const auto items = static_cast<int>(std::min(panels, std::max<int64_t>(most, 1)));  // of each core
  const auto panel = [&](int item) { return item / items * panels + panels * (item % items) / items; };
  const auto end = [&](int item) { return item / items * panels + panels * (item % items + 1) / items; };
  core_set.run(items * size, [&](int item, int) {  // pages that were never written are all the same page
    std::memset(buffer.as<char>(panel(item) * kPanel), 0, (end(item) - panel(item)) * kPanel);
  });
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double best = 0;
  for (int pass = 0; pass < 2 || std::chrono::duration<double>(Clock::now() - start).count() < seconds;
       ++pass) {
    const auto begin = Clock::now();
    core_set.run(items * size, [&](int item, int worker) {
      for (int64_t i = panel(item); i < end(item); ++i) {
        sums[worker * 16] += kernels.read_panel(buffer.as<char>(i * kPanel), kPanel / 64);
      }
    });
    const double taken = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, static_cast<double>(own * size) / taken);
  }
  volatile float keep = 0;  // so that the reads are not dropped
  for (float sum : sums) keep = keep + sum;
  return best;
}

}  // namespace pearl
