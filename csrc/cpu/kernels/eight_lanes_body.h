// The sum and the largest of eight fp32 lanes, for instruction sets that have them in one register: included
// inside the anonymous namespace of a kernels_*.cpp. (No #pragma once, no #include: it is a body.)

// A fixed tree: lanes 4 apart, then 2, then 1.
inline float sum_of_eight(__m256 a) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline float max_of_eight(__m256 a) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
