#include "sampling/filters.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "core/vector_math.h"
#include "sampling/rows.h"

namespace pearl {

namespace {

constexpr int kFirstBits = 11;  // of a rank, then 11, then 10
constexpr int kFirstShift = 32 - kFirstBits;

// Where a logit stands among all: orders as the logits do.
PEARL_INLINE uint32_t rank_of(float x) { return static_cast<uint32_t>(ordered(x)) ^ 0x80000000u; }

float value_of(int32_t key) { return float_of(key ^ ((key >> 31) & 0x7FFFFFFF)); }  // of ordered(x)

// The largest key of each block of 256.
PEARL_CLONES void block_maxima(const float* logits, int vocab, int32_t* maxima) {
  for (int block = 0; block * kBlock < vocab; ++block) {
    maxima[block] = largest(logits + block * kBlock, std::min(kBlock, vocab - block * kBlock));
  }
}

// Weights of a block as exp((x - max) * inverse), 0 below the floor and behind the vocabulary.
PEARL_INLINE void block_weights(const float* logits, int count, float max, float inverse, float floor,
                                float* weights /*[kBlock]*/) {
  for (int i = 0; i < count; ++i) {
    weights[i] = select(logits[i] >= floor, exp_f32((logits[i] - max) * inverse), 0.0f);
  }
  for (int i = count; i < kBlock; ++i) weights[i] = 0.0f;
}

// masses[first digit of a rank] += weight, in order of index -> the sum of all weights.
PEARL_CLONES double first_masses(const float* logits, int vocab, float max, float inverse, float floor,
                                 double* masses) {
  BlockSum sum;
  float weights[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    block_weights(logits + first, count, max, inverse, floor, weights);
    if (largest(weights, kBlock) <= 0) continue;  // adding zeros changes nothing
    sum.add(weights);
    for (int i = 0; i < count; ++i) {
      if (weights[i] > 0.0f) masses[rank_of(logits[first + i]) >> kFirstShift] += weights[i];
    }
  }
  return sum.total();
}

// Keys and weights of the entries with that first digit, in order of index.
PEARL_CLONES void gather(const float* logits, int vocab, float max, float inverse, float floor,
                         uint32_t digit, FilterScratch* scratch) {
  float weights[kBlock];
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    int found = 0;
    for (int i = 0; i < count; ++i) {
      found |= static_cast<int>(rank_of(logits[first + i]) >> kFirstShift == digit);
    }
    if (!found) continue;
    block_weights(logits + first, count, max, inverse, floor, weights);
    for (int i = 0; i < count; ++i) {
      if (weights[i] > 0.0f && rank_of(logits[first + i]) >> kFirstShift == digit) {
        scratch->keys.push_back(ordered(logits[first + i]));
        scratch->weights.push_back(weights[i]);
      }
    }
  }
}

// The highest digit at which the masses from the top reach the goal, or the lowest that has any; `above`
// comes as the mass above all digits and goes as the mass above the one chosen.
int choose(const std::vector<double>& masses, double goal, double* above) {
  int lowest = 0;
  double reached = *above;
  for (int digit = static_cast<int>(masses.size()) - 1; digit >= 0; --digit) {
    if (!(masses[digit] > 0.0)) continue;
    lowest = digit;
    *above = reached;
    reached += masses[digit];
    if (reached >= goal) break;
  }
  return lowest;
}

// Digits 11 and 10 bits wide, among the entries that were gathered.
float descend(double goal, double above, FilterScratch* scratch) {
  for (const auto& [shift, bits] : {std::pair{10, 11}, std::pair{0, 10}}) {
    const uint32_t mask = (1u << bits) - 1;
    const size_t count = scratch->keys.size();
    const auto digit_of = [&](size_t i) {
      return ((static_cast<uint32_t>(scratch->keys[i]) ^ 0x80000000u) >> shift) & mask;
    };
    scratch->masses.assign(mask + 1, 0.0);
    for (size_t i = 0; i < count; ++i) scratch->masses[digit_of(i)] += scratch->weights[i];
    const auto chosen = static_cast<uint32_t>(choose(scratch->masses, goal, &above));
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      if (digit_of(i) != chosen) continue;
      scratch->keys[kept] = scratch->keys[i];
      scratch->weights[kept++] = scratch->weights[i];
    }
    scratch->keys.resize(kept);
    scratch->weights.resize(kept);
  }
  return value_of(scratch->keys[0]);
}

float nucleus(const float* logits, int vocab, float max, float inverse, float floor, float top_p,
              FilterScratch* scratch) {
  scratch->masses.assign(1 << kFirstBits, 0.0);
  const double total = first_masses(logits, vocab, max, inverse, floor, scratch->masses.data());
  const double goal = static_cast<double>(top_p) * total;
  double above = 0.0;
  const int digit = choose(scratch->masses, goal, &above);
  scratch->keys.clear();
  scratch->weights.clear();
  gather(logits, vocab, max, inverse, floor, static_cast<uint32_t>(digit), scratch);
  return descend(goal, above, scratch);
}

}  // namespace

PEARL_CLONES void indices_at_least(const float* logits, int vocab, int32_t bound, std::vector<int32_t>* out) {
  out->clear();
  for (int first = 0; first < vocab; first += kBlock) {
    const int count = vocab - first < kBlock ? vocab - first : kBlock;
    if (largest(logits + first, count) < bound) continue;
    for (int i = first; i < first + count; ++i) {
      if (ordered(logits[i]) >= bound) out->push_back(i);
    }
  }
}

float kth_largest(const float* logits, int vocab, int k, FilterScratch* scratch) {
  std::vector<int32_t>& keys = scratch->keys;
  const int blocks = (vocab + kBlock - 1) / kBlock;
  int32_t bound = std::numeric_limits<int32_t>::min();
  if (k <= blocks) {  // k entries are at least as large as the k-th largest block maximum
    keys.resize(blocks);
    block_maxima(logits, vocab, keys.data());
    std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(), std::greater<>());
    bound = keys[k - 1];
  }
  indices_at_least(logits, vocab, bound, &keys);
  for (int32_t& key : keys) key = ordered(logits[key]);
  std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(), std::greater<>());
  return value_of(keys[k - 1]);
}

float filter_threshold(const Filters& filters, const float* logits, int vocab, const RowScan& scan,
                       float temperature, FilterScratch* scratch) {
  float floor = -kInfinity;
  if (filters.min_p > 0.0f) {
    const float share = log_f32(std::max(filters.min_p, std::numeric_limits<float>::min()));
    floor = std::min(scan.max + share * temperature, scan.max);
  }
  if (filters.top_k > 0 && filters.top_k < vocab) {
    floor = std::max(floor, kth_largest(logits, vocab, filters.top_k, scratch));
  }
  if (filters.top_p < 1.0f) {
    const float inverse = inverse_temperature(temperature);
    floor = std::max(floor, nucleus(logits, vocab, scan.max, inverse, floor, filters.top_p, scratch));
  }
  return floor;
}

}  // namespace pearl
