#include "cpu/bandwidth.h"

#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/memory.h"

namespace pearl {
namespace {

// XOR of every word of `lines` cache lines, in four streams.
uint64_t read_lines(const uint64_t* data, int64_t lines) {
  constexpr int kStreams = 4, kWords = 8, kAhead = 16;  // words of a line, lines of each stream
  const int64_t stream_lines = lines / kStreams;
  uint64_t sum[kWords] = {};
  for (int64_t line = 0; line < stream_lines; ++line) {
    for (int s = 0; s < kStreams; ++s) {
      const uint64_t* words = data + (s * stream_lines + line) * kWords;
      __builtin_prefetch(words + kAhead * kWords);
      for (int i = 0; i < kWords; ++i) sum[i] ^= words[i];
    }
  }
  uint64_t all = 0;
  for (uint64_t one : sum) all ^= one;
  return all;
}

}  // namespace

double measure_bandwidth(CoreSet& core_set, int64_t bytes, double seconds) {
  constexpr int64_t kPanel = 96 * 1024;  // four streams of a panel, then the next: as a matmul goes
  const int64_t panels = bytes / core_set.size() / kPanel;
  if (panels < 1) {
    throw std::invalid_argument("bytes is " + std::to_string(bytes) + "; at least " +
                                std::to_string(kPanel * core_set.size()) + " for " +
                                std::to_string(core_set.size()) + " cores");
  }
  const HugeBuffer buffer(panels * kPanel * core_set.size(), "the bandwidth measurement");
  std::vector<uint64_t> sums(core_set.size() * 8);
  core_set.run([&](int index) {
    char* own = buffer.as<char>(index * panels * kPanel);
    for (int64_t i = 0; i < panels * kPanel; i += 64)
      own[i] = static_cast<char>(i);  // untouched pages are all one page
  });
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double best = 0;
  for (int pass = 0; pass < 2 || std::chrono::duration<double>(Clock::now() - start).count() < seconds;
       ++pass) {
    const auto begin = Clock::now();
    core_set.run([&](int index) {
      for (int64_t i = 0; i < panels; ++i) {
        sums[index * 8] ^= read_lines(buffer.as<uint64_t>((index * panels + i) * kPanel), kPanel / 64);
      }
    });
    const double taken = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, static_cast<double>(buffer.bytes()) / taken);
  }
  volatile uint64_t keep = 0;  // so that the reads are not dropped
  for (uint64_t sum : sums) keep = keep ^ sum;
  return best;
}

}  // namespace pearl
