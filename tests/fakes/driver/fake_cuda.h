// A CUDA driver without a GPU, for tests: what a test asks of it beyond the driver's own calls.
//
// The library exports cuGetProcAddress_v2 and every call of csrc/cuda/driver/driver_api.h. Device memory is
// host memory; a stream is a thread that runs its work in order, after random delays; a kernel is a C
// function. What CUDA forbids, and what it allows but no coordinator of ours should do, is kept as a text, a
// *violation*:
//   a wait on an event never recorded, an event recorded on another context's stream, a call while another
//   context is current, any use of a handle after its destroy, a destroy of an exec or stream at work, work
//   issued after the context's error was returned, copies of memory that is not registered (or freed, or too
//   short), the default stream, calls that a capture forbids, a graph launched where it has nothing to do.
// Worker threads share nothing with each other or the caller but what CUDA orders (events, edges of graphs,
// the order in a stream), so that ThreadSanitizer sees a missing wait as a race.
//
//   fake_reset(seed, max_delay_us, num_devices);      // first; ends all streams, and every handle before it
//   void* stream = fake_stream_create(0, -1);         // device 0, high priority
//   void* graph = fake_graph_create(0, &kernel, &argument);   // what torch.cuda.CUDAGraph would have
//   captured void* exec = fake_graph_exec(graph); fake_inject("cuGraphLaunch", 3, 2);               // the
//   third launch from now returns out of memory fake_inject("kernel", 5, 700);                    // the
//   fifth kernel from now raises an illegal address fake_synchronize(); fake_violations(buffer, size);
//   fake_live_handles(buffer, size);
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

// The world: one in a process. Handles from before a reset are answered with CUDA_ERROR_DEINITIALIZED.
// max_delay_us 0: no delays. Nothing else may call the library meanwhile.
void fake_reset(uint64_t seed, int max_delay_us, int num_devices);
void fake_set_version(int version);      // what cuDriverGetVersion says: 13000 after a reset
void fake_hide(const char* call);        // cuGetProcAddress no longer finds it
void fake_set_memory(size_t num_bytes);  // the free memory of each device

// Faults: the nth call (or kernel) from now, from 1. "kernel" raises on the stream, and every later call of
// that context returns it; a call returns its code, which is kept for later calls only if CUDA would (700,
// 719, ...).
void fake_inject(const char* call, int nth, int code);
void fake_raise(int code);  // inside a kernel
// So many answers of cuStreamQuery say that a stream is idle while work runs on it.
void fake_say_idle(int times);

// Texts, one to a line, into buffer (ended by 0, cut at size) -> the bytes that all would need.
size_t fake_violations(char* buffer, size_t size);
size_t fake_live_handles(char* buffer, size_t size);  // what was made by calls of the driver and still lives
size_t fake_num_calls(const char* call);              // since the reset; "kernel": kernels begun

// What torch owns in real life.
void* fake_stream_create(int device, int priority);  // CUstream
void fake_stream_destroy(void* stream);
int fake_stream_priority(void* stream);             // of any stream; 1: there is none
void fake_stream_capture(void* stream, int is_on);  // as torch.cuda.graph does: in the global mode
void fake_synchronize(void);                        // returns when every stream is idle

typedef void (*fake_kernel)(void* argument);
void* fake_graph_create(int device, fake_kernel kernel, void* argument);  // CUgraph of one kernel; null: none
void* fake_graph_add(void* graph, fake_kernel kernel, void* argument, void* const* after,
                     size_t num_after);    // -> CUgraphNode
void* fake_graph_exec(void* graph);        // CUgraphExec
void fake_graph_exec_destroy(void* exec);  // graphs: cuGraphDestroy
// A kernel of work on a stream without a graph, as an eager torch operator would put there.
void fake_launch(void* stream, fake_kernel kernel, void* argument);

// Memory that copies may touch. device -1: pinned host memory. free: poisons it with 0xEE.
void* fake_alloc(int device, size_t num_bytes);
void fake_free(void* memory);
void fake_register(int device, void* memory,
                   size_t num_bytes);  // memory that the driver did not allocate, such as a torch tensor's
void fake_unregister(void* memory);

}  // extern "C"
