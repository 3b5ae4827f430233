// The two kernels with which rounds repeat themselves on a device, as PTX, and the words that they share with
// the host.
//
// A device has nobody to compile CUDA C++ for it, and Triton cannot call cudaGraphSetConditional. PTX that
// declares it as an extern function is linked by the driver itself when a module is loaded: no cudadevrt. PTX
// 7.0 is the oldest that knows sm_80; the driver compiles it for the chip that is there.
#pragma once

#include <cstddef>

namespace pearl {

// Of a run. Array `loop` in the device's memory: the loop's own.
struct LoopWords {
  static constexpr size_t kUntil = 0;  // rounds that may run in all, as the last peek found it
  static constexpr size_t kRan = 1;    // rounds that have
  static constexpr size_t kEnded = 2;  // launches that have ended
  static constexpr size_t kCount = 4;
};

// Array `loop_host` in pinned memory, aligned to a line, each line written from one side.
struct LoopHostWords {
  static constexpr size_t kUntil = 0;   // the host's: rounds that may run in all; 0 ends the loop
  static constexpr size_t kRan = 32;    // the device's, stored before
  static constexpr size_t kEnded = 33;  // this, with release
  static constexpr size_t kZero = 64;   // what a run's LoopWords start from
  static constexpr size_t kCount = 96;
};

// peek   One thread, beside a round: what the host allows, so that nothing waits for a read across the bus.
// turn   One warp, behind a round and that peek (is_round 1), or before the first (0): counts the round; the
//        loop goes on while somebody runs and more rounds may. Where it ends, the host is told: the number of
//        rounds, then with release, at system scope, that the launch has ended.
constexpr const char* kLoopPeek = "pearl_loop_peek";
constexpr const char* kLoopTurn = "pearl_loop_turn";
constexpr unsigned kLoopTurnThreads = 32;
constexpr const char* kLoopPtx = R"ptx(
.version 7.0
.target sm_80
.address_size 64

.extern .func cudaGraphSetConditional(.param .b64 handle, .param .b32 value);

.visible .entry pearl_loop_peek(
  .param .u64 peek_allowed,
  .param .u64 peek_words
)
{
  .reg .b32 %r<2>;
  .reg .b64 %rd<3>;

  ld.param.u64 %rd1, [peek_allowed];
  ld.param.u64 %rd2, [peek_words];
  ld.acquire.sys.global.u32 %r1, [%rd1];
  st.global.u32 [%rd2], %r1;
  ret;
}

.visible .entry pearl_loop_turn(
  .param .u64 turn_handle,
  .param .u64 turn_words,
  .param .u64 turn_told,
  .param .u64 turn_finish_reason,
  .param .u32 turn_num_slots,
  .param .u32 turn_is_round
)
{
  .reg .pred %p<6>;
  .reg .b32 %r<9>;
  .reg .b64 %rd<7>;

  ld.param.u64 %rd1, [turn_handle];
  ld.param.u64 %rd2, [turn_words];
  ld.param.u64 %rd3, [turn_told];
  ld.param.u64 %rd4, [turn_finish_reason];
  ld.param.u32 %r1, [turn_num_slots];
  ld.param.u32 %r2, [turn_is_round];

  // p1: whether one of this thread's slots runs (finish_reason 1).
  mov.u32 %r3, %tid.x;
  setp.ne.u32 %p1, %r1, %r1;
slots:
  setp.ge.u32 %p2, %r3, %r1;
  @%p2 bra counted;
  mul.wide.u32 %rd5, %r3, 4;
  add.s64 %rd6, %rd4, %rd5;
  ld.global.u32 %r4, [%rd6];
  setp.eq.u32 %p3, %r4, 1;
  or.pred %p1, %p1, %p3;
  add.u32 %r3, %r3, 32;
  bra slots;
counted:
  vote.sync.any.pred %p4, %p1, 0xffffffff;
  mov.u32 %r3, %tid.x;
  setp.ne.u32 %p2, %r3, 0;
  @%p2 ret;

  ld.global.u32 %r4, [%rd2];
  ld.global.u32 %r5, [%rd2+4];
  add.u32 %r5, %r5, %r2;
  st.global.u32 [%rd2+4], %r5;
  setp.lt.u32 %p5, %r5, %r4;
  and.pred %p5, %p5, %p4;
  @%p5 bra set;
  ld.global.u32 %r6, [%rd2+8];
  add.u32 %r6, %r6, 1;
  st.global.u32 [%rd2+8], %r6;
  st.global.u32 [%rd3], %r5;
  st.release.sys.global.u32 [%rd3+4], %r6;
set:
  selp.u32 %r7, 1, 0, %p5;
  {
  .param .b64 handle_of_call;
  .param .b32 value_of_call;
  st.param.b64 [handle_of_call], %rd1;
  st.param.b32 [value_of_call], %r7;
  call.uni cudaGraphSetConditional, (handle_of_call, value_of_call);
  }
  ret;
}
)ptx";

}  // namespace pearl
