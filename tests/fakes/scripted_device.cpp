// A lane of the fake GPU that computes: each captured step is a host function over the device's arrays, which
// does what the kernels do with the proven steps of the CPU (csrc/cpu/lane/cpu_steps.h) over a scripted
// executor, so that stale or missing KV rows change the answer. A step reads and writes only what its kernels
// read and write.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/lane/cpu_steps.h"
#include "cuda/memory/device_arrays.h"
#include "cuda/memory/logprob_ring.h"
#include "cuda/memory/verdict_ring.h"
#include "drafters/model_drafter.h"
#include "native/gate.h"
#include "native/scripted_arrays.h"
#include "native/scripted_executor.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using pearl::FinishReason;
using pearl::State;

namespace {

struct Lane {
  explicit Lane(const ScriptedConfig& config)
      : c(config),
        executor({config.executor_vocab, config.capacity, config.num_slots, config.rule, config.divergence,
                  4.0, 0, 0, 0, 0, config.nan_at, -1, "", config.num_blocks, config.block_size}),
        last_logits(config.executor_vocab) {
    std::memcpy(&at, config.addresses, sizeof(at));
  }

  const ScriptedConfig c;
  Arrays at;
  pearl::ScriptedExecutor executor;
  std::vector<float> last_logits;  // of the last prefill pass
  Gate gate;
  std::mutex mutex;
  std::string errors;  // guarded by mutex
};

struct Step {
  Step(Lane* lane, std::string op, int gamma, pearl::JudgeKind judge, bool keep_logits, int slot,
       bool processed, bool logprobs)
      : lane(lane),
        op(std::move(op)),
        gamma(gamma),
        keep_logits(keep_logits),
        slot(slot),
        processed(processed),
        logprobs(logprobs),
        state(lane->c.num_slots, gamma, lane->c.capacity, lane->c.vocab_size, draft_vocab(lane),
              lane->executor.num_blocks(), lane->executor.block_size()),
        run(4, static_cast<size_t>(2 * gamma + 2), {}),
        steps(&lane->executor, &state, &run),
        // The lane outlives its steps.
        drafter(std::shared_ptr<pearl::Executor>(std::shared_ptr<void>(), &lane->executor)) {
    state.judge = judge;
    drafter.start(&state, &run);
  }
  // A draft writes rows as wide as its executor's; the arrays have as much of them as can be sampled.
  static int draft_vocab(const Lane* lane) {
    return lane->c.is_target ? lane->c.draft_vocab_size : lane->c.executor_vocab;
  }

  Lane* const lane;
  const std::string op;
  const int gamma;
  const bool keep_logits;
  const int slot;
  const bool processed;
  const bool logprobs;
  State state;
  pearl::Run run;
  pearl::CpuSteps steps;
  pearl::ModelDrafter drafter;

  void perform();

 private:
  // Whether a slot runs, by what its finish_reason is.
  bool load_slot(int b, const int32_t* finish_reason);
  void load_transform(int b);
  void load_table(int b);
  void load_tokens(int b, int64_t begin, int64_t end);
  void load_window(int b);
  float* device_draft_row(int b, int64_t position) const;
  void prefill_chunk();
  void prefill_logits();
  void draft();
  void score(bool include_window);
  void verify(int32_t* finish_reason);
  void verify_slot(int b, int32_t* finish_reason);
  void publish(int b, const int32_t* header, const int32_t* tokens);
  void publish(int b, const pearl::RoundResult& result);
};

bool Step::load_slot(int b, const int32_t* finish_reason) {
  const Arrays& at = lane->at;
  const bool runs = finish_reason[b] == static_cast<int32_t>(FinishReason::kRunning);
  state.finish_reason[b] = runs ? FinishReason::kRunning : FinishReason::kIdle;
  if (!runs) return false;
  state.committed[b] = at.committed[b];
  state.pending[b] = at.pending[b];
  state.max_total_len[b] = at.max_total_len[b];
  state.gamma[b] = std::min(at.gamma[b], gamma);
  state.temperature[b] = at.temperature[b];
  state.seed[b] = static_cast<uint64_t>(at.seed[b]);
  const int64_t end = state.committed[b] + state.pending[b];
  if (state.committed[b] < 1 || state.pending[b] < 0 || end > state.max_total_len[b] ||
      state.max_total_len[b] > lane->c.capacity || state.gamma[b] < 0) {
    throw std::runtime_error("a state that no order of steps can leave");  // another lane writes it just now
  }
  load_table(b);
  if (processed) load_transform(b);
  return true;
}

// The blocks that a sequence holds, and no entry behind them.
void Step::load_table(int b) {
  state.num_held[b] = static_cast<int32_t>(state.blocks.blocks_for(lane->at.max_total_len[b]));
  std::copy_n(lane->at.block_table + static_cast<int64_t>(b) * state.max_blocks, state.num_held[b],
              state.table(b));
}

void Step::load_transform(int b) {
  const Arrays& at = lane->at;
  pearl::Transform& t = state.transform[b];
  t = {};
  t.min_tokens = at.min_tokens[b];
  const int32_t* masked = at.masked_ids + 2 * b * lane->c.num_stop_ids;
  t.masked_ids.assign(masked, std::find(masked, masked + 2 * lane->c.num_stop_ids, -1));
  for (int i = b * lane->c.num_biased; i < (b + 1) * lane->c.num_biased && at.bias_ids[i] >= 0; ++i) {
    t.logit_bias.emplace_back(at.bias_ids[i], at.bias[i]);
  }
  t.repetition_penalty = at.repetition_penalty[b];
  t.frequency_penalty = at.frequency_penalty[b];
  t.presence_penalty = at.presence_penalty[b];
  t.filters = {at.top_k[b], at.top_p[b], at.min_p[b]};
  state.prompt_len[b] = at.prompt_len[b];
  load_tokens(b, 0, state.committed[b]);
}

void Step::load_tokens(int b, int64_t begin, int64_t end) {
  const int32_t* from = lane->at.token_ids + static_cast<int64_t>(b) * lane->c.capacity;
  std::copy(from + begin, from + end, state.tokens(b) + begin);
}

void Step::load_window(int b) {
  state.num_draft_tokens[b] = lane->at.num_draft_tokens[b];
  if (state.num_draft_tokens[b] < 0 || state.num_draft_tokens[b] > gamma) {
    throw std::runtime_error("a window that no draft leaves");
  }
  if (state.committed[b] + state.pending[b] + state.num_draft_tokens[b] > lane->c.capacity) {
    throw std::runtime_error("a window that ends behind the sequence");
  }
  std::copy_n(lane->at.draft_token_ids + b * gamma, state.num_draft_tokens[b], state.window(b));
}

float* Step::device_draft_row(int b, int64_t position) const {
  const int64_t row = b * 2 * gamma + position % (2 * gamma);
  return lane->at.draft_logits + row * lane->c.draft_vocab_size;
}

void Step::prefill_chunk() {
  for (int b = 0; b < lane->c.num_slots; ++b) {
    const int64_t start = lane->at.chunk[2 * b], end = lane->at.chunk[2 * b + 1];
    if (start >= end) continue;
    if (start < 0 || end > lane->c.capacity) throw std::runtime_error("a chunk outside the sequence");
    load_tokens(b, start, end);
    for (int64_t i = start; i < end; ++i) {
      state.tokens(b)[i] = std::min(state.tokens(b)[i], lane->c.executor_vocab - 1);
    }
    load_table(b);
    const pearl::Segment segment{b,
                                 state.tokens(b) + start,
                                 static_cast<int>(end - start),
                                 start,
                                 1,
                                 lane->last_logits.data(),
                                 state.table(b),
                                 state.num_held[b]};
    lane->executor.forward(&segment, 1);
  }
}

void Step::prefill_logits() {
  std::copy(lane->last_logits.begin(), lane->last_logits.end(),
            lane->at.target_logits + static_cast<int64_t>(slot) * (gamma + 1) * lane->c.vocab_size);
  lane->at.num_rows[slot] = 1;
}

void Step::draft() {
  for (int b = 0; b < lane->c.num_slots; ++b) {
    if (!load_slot(b, lane->at.finish_reason)) continue;
    const int64_t end = state.committed[b] + state.pending[b];
    const int64_t first = processed ? 0 : std::max<int64_t>(0, end - 2);
    load_tokens(b, first, end);
    for (int64_t i = first; i < end; ++i) {
      state.tokens(b)[i] = std::max(state.tokens(b)[i], 0);
    }
    state.draft_fed[b] = end;  // a device's draft feeds the last two tokens, whatever it fed before
    std::fill_n(state.window(b), gamma, -1);
    state.bad_draft[b] = -1;
  }
  drafter.draft();  // -1 stays where none could be sampled
  for (int b = 0; b < lane->c.num_slots; ++b) {
    if (!state.running(b)) continue;
    const int64_t first = state.committed[b] + state.pending[b];
    const auto length = static_cast<int>(std::min<int64_t>(state.gamma[b], state.max_total_len[b] - first));
    lane->at.num_draft_tokens[b] = length;
    std::copy_n(state.window(b), gamma, lane->at.draft_token_ids + b * gamma);
    for (int j = 0; keep_logits && j < length; ++j) {
      std::copy_n(state.draft_row(b, first + j), lane->c.draft_vocab_size, device_draft_row(b, first + j));
    }
  }
}

void Step::score(bool include_window) {
  for (int b = 0; b < lane->c.num_slots; ++b) {
    if (!load_slot(b, lane->at.finish_reason)) continue;
    load_tokens(b, state.committed[b] - 1, state.committed[b] + state.pending[b]);
    for (int64_t i = 0; i < state.pending[b]; ++i) {
      int32_t& token = state.tokens(b)[state.committed[b] + i];
      token = std::max(token, 0);
    }
    if (state.pending[b] > gamma) throw std::runtime_error("pending tokens that no verify leaves");
    if (!include_window) continue;
    load_window(b);
    if (state.pending[b] + state.num_draft_tokens[b] > gamma) throw std::runtime_error("too many candidates");
    for (int j = 0; j < gamma; ++j) state.window(b)[j] = std::max(state.window(b)[j], 0);
  }
  steps.score(include_window);
  for (int b = 0; b < lane->c.num_slots; ++b) {
    if (!state.running(b)) continue;
    const int64_t row = static_cast<int64_t>(b) * (gamma + 1);
    lane->at.num_rows[b] = state.num_rows[b];
    std::copy_n(state.target_rows(b), static_cast<int64_t>(state.num_rows[b]) * lane->c.vocab_size,
                lane->at.target_logits + row * lane->c.vocab_size);
  }
}

void Step::verify(int32_t* finish_reason) {
  std::vector<bool> runs;
  for (int b = 0; b < lane->c.num_slots; ++b) runs.push_back(load_slot(b, finish_reason));
  std::fill(state.finish_reason.begin(), state.finish_reason.end(), FinishReason::kIdle);
  for (int b = 0; b < lane->c.num_slots; ++b) {
    if (!runs[b]) continue;
    state.finish_reason[b] = FinishReason::kRunning;
    verify_slot(b, finish_reason);
    state.finish_reason[b] = FinishReason::kIdle;
  }
}

void Step::verify_slot(int b, int32_t* finish_reason) {
  const Arrays& at = lane->at;
  const int round = at.round[b];
  const int64_t base = state.committed[b];
  const auto pending = static_cast<int32_t>(state.pending[b]);
  load_tokens(b, base, base + pending);
  state.num_rows[b] = at.num_rows[b];
  if (state.num_rows[b] < 1 || state.num_rows[b] > gamma + 1)
    throw std::runtime_error("rows that no score leaves");
  std::copy_n(at.target_logits + static_cast<int64_t>(b) * (gamma + 1) * lane->c.vocab_size,
              static_cast<int64_t>(state.num_rows[b]) * lane->c.vocab_size, state.target_rows(b));
  int32_t window_len = 0;
  if (round > 0 && gamma > 0) {
    load_window(b);
    window_len = state.num_draft_tokens[b];
  }
  const int num_judged = std::min(state.num_rows[b], pending + window_len);
  if (state.judge == pearl::JudgeKind::kRejection && state.temperature[b] > 0.0f) {
    for (int i = 0; i < num_judged; ++i) {
      std::copy_n(device_draft_row(b, base + i), lane->c.draft_vocab_size, state.draft_row(b, base + i));
    }
  }
  const int32_t* stops = at.stop_token_ids + b * lane->c.num_stop_ids;
  state.stop_token_ids[b].assign(stops, std::find(stops, stops + lane->c.num_stop_ids, -1));
  int32_t* tokens = at.token_ids + static_cast<int64_t>(b) * lane->c.capacity;

  state.num_logprobs[b] = logprobs ? at.num_logprobs[b] : -1;
  state.round[b] = round;
  run.reset(0);
  steps.verify(false);
  std::vector<pearl::RoundResult> results;
  run.ring.drain(&results);
  const pearl::RoundResult& result = results.at(0);
  if (result.finish_reason == FinishReason::kError) {
    const char* place = std::strstr(result.error.c_str(), "position ");
    const auto row = static_cast<int>(std::strtoll(place + 9, nullptr, 10) - base);
    std::vector<int32_t> found(row + 1, -1);
    if (row < num_judged) found[row] = row < pending ? tokens[base + row] : state.window(b)[row - pending];
    finish_reason[b] = static_cast<int32_t>(FinishReason::kError);
    const int32_t header[] = {row, num_judged, pending, finish_reason[b], 0, row + 1};
    return publish(b, header, found.data());
  }
  const int64_t written = base + std::max<int64_t>(pending + window_len, result.accept_len + 1);
  const int64_t end = std::min<int64_t>(written, lane->c.capacity);
  std::copy(state.tokens(b) + base, state.tokens(b) + end, tokens + base);
  at.committed[b] = static_cast<int32_t>(state.committed[b]);
  at.pending[b] = static_cast<int32_t>(state.pending[b]);
  finish_reason[b] = static_cast<int32_t>(result.finish_reason);
  const auto num_new = static_cast<int32_t>(result.token_ids.size());
  const int32_t header[] = {result.accept_len,
                            result.num_judged,
                            result.pending_before,
                            static_cast<int32_t>(result.finish_reason),
                            num_new,
                            num_new};
  publish(b, header, result.token_ids.data());
  if (state.num_logprobs[b] >= 0) publish(b, result);
}

// Behind the verdict, which a reader may see long before.
void Step::publish(int b, const pearl::RoundResult& result) {
  std::this_thread::sleep_for(std::chrono::microseconds(result.round % 3 == 1 ? 0 : 100));
  const int64_t row = (1 + lane->c.max_logprobs) * pearl::LogprobRing::kFields;
  const int64_t width = 1 + (lane->c.gamma_max + 1) * row;
  int32_t* entry = lane->at.logprob_ring +
                   (static_cast<int64_t>(result.round % lane->c.ring_size) * lane->c.num_slots + b) * width;
  const int each = 1 + state.num_logprobs[b];
  for (size_t i = 0; i < result.token_ids.size(); ++i) {
    std::memcpy(entry + 1 + i * row, &result.logprobs[i * each], sizeof(pearl::Logprob) * each);
  }
  std::atomic_ref<int32_t>(*entry).store(result.round, std::memory_order_release);
}

// header: accept_len, num_judged, pending_before, finish_reason, num_new, and how many tokens to store.
void Step::publish(int b, const int32_t* header, const int32_t* tokens) {
  const int32_t round = lane->at.round[b]++;
  const int64_t width = pearl::VerdictRing::kHeader + gamma + 1;
  int32_t* entry =
      lane->at.ring + (static_cast<int64_t>(round % lane->c.ring_size) * lane->c.num_slots + b) * width;
  std::copy_n(header, 5, entry + 1);
  std::copy_n(tokens, header[5], entry + pearl::VerdictRing::kHeader);
  std::atomic_ref<int32_t>(*entry).store(round, std::memory_order_release);
}

void Step::perform() {
  lane->gate.pass(op);
  run.reset(0);
  try {
    if (op == "prefill chunk") return prefill_chunk();
    if (op == "prefill logits") return prefill_logits();
    if (op == "draft") return draft();
    if (op == "score" || op == "score window") return score(op == "score window");
    return verify(op == "join" ? lane->at.joining : lane->at.finish_reason);
  } catch (const std::exception& error) {
    const std::lock_guard<std::mutex> lock(lane->mutex);
    lane->errors += op + ": " + error.what() + "\n";
  }
}

}  // namespace

EXPORT void* scripted_lane_create(const ScriptedConfig* config) { return new Lane(*config); }
EXPORT void scripted_lane_destroy(void* lane) { delete static_cast<Lane*>(lane); }

EXPORT void* scripted_step_create(void* lane, const char* op, int gamma, int is_coupled, int keep_logits,
                                  int slot, int processed, int logprobs) {
  const auto judge = is_coupled ? pearl::JudgeKind::kCoupled : pearl::JudgeKind::kRejection;
  return new Step(static_cast<Lane*>(lane), op, gamma, judge, keep_logits != 0, slot, processed != 0,
                  logprobs != 0);
}
EXPORT void scripted_step_destroy(void* step) { delete static_cast<Step*>(step); }
EXPORT void scripted_step_run(void* step) { static_cast<Step*>(step)->perform(); }

// Errors of steps so far, one to a line -> the bytes that all would need.
EXPORT size_t scripted_errors(void* lane, char* buffer, size_t size) {
  auto* const self = static_cast<Lane*>(lane);
  const std::lock_guard<std::mutex> lock(self->mutex);
  if (size > 0) snprintf(buffer, size, "%s", self->errors.c_str());
  return self->errors.size() + 1;
}
EXPORT void scripted_gate_close(void* lane, const char* op, int nth) {
  static_cast<Lane*>(lane)->gate.close(op, nth);
}
EXPORT int scripted_gate_wait(void* lane, int timeout_ms) {
  return static_cast<Lane*>(lane)->gate.wait_until_held(timeout_ms);
}
EXPORT void scripted_gate_open(void* lane) { static_cast<Lane*>(lane)->gate.open(); }
EXPORT int64_t scripted_max_position(void* lane) { return static_cast<Lane*>(lane)->executor.max_position(); }
