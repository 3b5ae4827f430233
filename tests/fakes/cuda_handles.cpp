// Owners of driver handles on the fake driver, and the order that streams, events and graphs give: run by
// tests/cuda/test_cuda_driver.py, also under ThreadSanitizer, where a wait left out must be reported.
//   cuda_handles LIBRARY SCENARIO SEED
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "cuda/driver/handles.h"
#include "fake_cuda.h"

using namespace pearl;

namespace {

constexpr int kRounds = 150;

void expect(bool is_so, const char* what) {
  if (is_so) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::exit(1);
}

std::string lines(size_t (*report)(char*, size_t)) {
  std::string all(report(nullptr, 0), 0);
  report(all.data(), all.size());
  all.resize(std::strlen(all.c_str()));
  return all;
}

void expect_clean() {
  expect(lines(fake_violations).empty(), lines(fake_violations).c_str());
  expect(lines(fake_live_handles).empty(), lines(fake_live_handles).c_str());
}

// Two lanes as in a round: one writes a window, the other judges it and writes a verdict.
struct Lanes {
  int window = 0;   // written by draft
  int verdict = 0;  // written by judge
  int num_wrong = 0;
  static void draft(void* self) {
    auto& l = *static_cast<Lanes*>(self);
    l.window = l.verdict + 1;
  }
  static void judge(void* self) {
    auto& l = *static_cast<Lanes*>(self);
    l.num_wrong += l.window != l.verdict + 1;
    l.verdict = l.window;
  }
};

struct Pair {
  explicit Pair(const std::string& library) : driver(std::make_shared<Driver>(library)) {
    context = std::make_shared<Context>(driver, 0);
    context->make_current();
    target = static_cast<CUstream>(fake_stream_create(0, 0));
    draft = static_cast<CUstream>(fake_stream_create(0, -1));
  }
  ~Pair() { driver->api().cuCtxSetCurrent(nullptr); }
  void check(CUresult code) { driver->check(code, "a call", "in a test"); }
  std::shared_ptr<Driver> driver;
  std::shared_ptr<Context> context;
  CUstream target, draft;
};

CUgraph graph_of(fake_kernel kernel, void* argument) {
  return static_cast<CUgraph>(fake_graph_create(0, kernel, argument));
}
CUgraphExec exec_of(fake_kernel kernel, void* argument) {
  return static_cast<CUgraphExec>(fake_graph_exec(graph_of(kernel, argument)));
}

// skip: the wait that is left out (0: none, 1: the target's for a window, 2: the draft's for a verdict).
void run_events(const std::string& library, int skip) {
  Lanes lanes;
  {
    Pair pair(library);
    const DriverApi& api = pair.driver->api();
    const CudaEvent window(pair.context, CU_EVENT_DISABLE_TIMING),
        verdict(pair.context, CU_EVENT_DISABLE_TIMING);
    const CUgraphExec draft = exec_of(&Lanes::draft, &lanes), judge = exec_of(&Lanes::judge, &lanes);
    for (int round = 0; round < kRounds; ++round) {
      pair.check(api.cuGraphLaunch(draft, pair.draft));
      pair.check(api.cuEventRecord(window.get(), pair.draft));
      if (skip != 1) pair.check(api.cuStreamWaitEvent(pair.target, window.get(), 0));
      pair.check(api.cuGraphLaunch(judge, pair.target));
      pair.check(api.cuEventRecord(verdict.get(), pair.target));
      if (skip != 2) pair.check(api.cuStreamWaitEvent(pair.draft, verdict.get(), 0));
    }
    pair.check(api.cuStreamSynchronize(pair.draft));
    pair.check(api.cuStreamSynchronize(pair.target));
  }
  if (skip == 0) expect(lanes.verdict == kRounds && lanes.num_wrong == 0, "each window was judged once");
  expect_clean();
}

// One graph a round: draft beside score, both before verify. skip 1: without the edge from draft to verify.
struct Branches {
  int window = 0, scores = 0, sum = 0;
  static void draft(void* self) { ++static_cast<Branches*>(self)->window; }
  static void score(void* self) { ++static_cast<Branches*>(self)->scores; }
  static void verify(void* self) {
    auto& b = *static_cast<Branches*>(self);
    b.sum += b.window == b.scores;
  }
};

void run_graph(const std::string& library, int skip) {
  Branches branches;
  {
    Pair pair(library);
    const DriverApi& api = pair.driver->api();
    CudaGraph round(pair.context);
    CUgraphNode draft, score, verify, end;
    const CUgraph child = graph_of(&Branches::draft, &branches);
    pair.check(api.cuGraphAddChildGraphNode(&draft, round.get(), nullptr, 0, child));
    pair.check(api.cuGraphDestroy(child));  // the node has a clone
    pair.check(
        api.cuGraphAddChildGraphNode(&score, round.get(), nullptr, 0, graph_of(&Branches::score, &branches)));
    const std::array<CUgraphNode, 2> both = {score, draft};
    pair.check(api.cuGraphAddChildGraphNode(&verify, round.get(), both.data(), skip == 0 ? 2 : 1,
                                            graph_of(&Branches::verify, &branches)));
    const std::array<CUgraphNode, 2> ends = {verify, draft};
    pair.check(api.cuGraphAddEmptyNode(&end, round.get(), ends.data(), 2));
    const CudaGraphExec exec(pair.context, round);
    round = CudaGraph(pair.context);  // the exec is a snapshot: it outlives its graph
    pair.check(api.cuGraphUpload(exec.get(), pair.target));
    for (int i = 0; i < kRounds; ++i)
      pair.check(api.cuGraphLaunch(exec.get(), i % 2 == 0 ? pair.target : pair.draft));
    pair.check(api.cuStreamSynchronize(pair.target));
    pair.check(api.cuStreamSynchronize(pair.draft));
  }
  if (skip == 0) expect(branches.sum == kRounds, "verify came after its branches");
  expect_clean();
}

void run_owners(const std::string& library, int) {
  const auto driver = std::make_shared<Driver>(library);
  {
    const auto first = std::make_shared<Context>(driver, 0), second = std::make_shared<Context>(driver, 1);
    CudaEvent event(first, CU_EVENT_DEFAULT);
    const CUevent raw = event.get();
    CudaEvent moved(std::move(event));
    expect(moved.get() == raw && event.get() == nullptr, "a moved event is owned once");
    event = CudaEvent(second, CU_EVENT_DISABLE_TIMING);
    moved = std::move(event);  // the old one goes with the other's end
    CudaGraph graph(second);
    CudaGraphExec exec(second, graph);
    CudaGraphExec taken(std::move(exec));
    exec = std::move(taken);
    std::thread([held = std::move(moved)] {}).join();  // destroyed on a thread without a context
    driver->api().cuCtxSetCurrent(first->get());
    {
      const CurrentContext current(*second);
    }
    expect(driver->api().cuEventDestroy(CudaEvent(first, 0).get()) == CUDA_SUCCESS,
           "the context before is back");
    driver->api().cuCtxSetCurrent(nullptr);
  }
  expect(lines(fake_live_handles).empty(), lines(fake_live_handles).c_str());
  expect(lines(fake_violations).find("destroyed before") != std::string::npos,
         "the event destroyed twice is told");
}

void run_shutdown(const std::string& library, int) {
  const auto driver = std::make_shared<Driver>(library);
  const auto context = std::make_shared<Context>(driver, 0);
  {
    const CudaEvent event(context, CU_EVENT_DEFAULT);
    const CudaGraph graph(context);
    const CudaGraphExec exec(context, graph);
    fake_reset(0, 0, 1);  // the driver shuts down: every handle is answered CUDA_ERROR_DEINITIALIZED
    try {
      const CudaEvent late(context, CU_EVENT_DEFAULT);
      expect(false, "an event was made after the end");
    } catch (const CudaError& error) {
      expect(error.code == CUDA_ERROR_DEINITIALIZED, error.what());
    }
  }
  expect_clean();
}

// Each call that an owner makes fails once: one CudaError with its name, and nothing is left behind.
void run_faults(const std::string& library, int) {
  const auto driver = std::make_shared<Driver>(library);
  const std::map<std::string, std::function<void(std::shared_ptr<Context>)>> makers = {
      {"cuDevicePrimaryCtxRetain", [&](auto) { Context(driver, 1); }},
      {"cuDeviceGet", [&](auto) { Context(driver, 1); }},
      {"cuDeviceGetName", [&](auto) { driver->device(1); }},
      {"cuDeviceGetAttribute", [&](auto) { driver->device(1); }},
      {"cuCtxPushCurrent", [](auto context) { CudaEvent(context, 0); }},
      {"cuEventCreate", [](auto context) { CudaEvent(context, 0); }},
      {"cuGraphCreate", [](auto context) { CudaGraph graph(context); }},
      {"cuGraphInstantiateWithFlags", [](auto context) { CudaGraphExec(context, CudaGraph(context)); }},
  };
  for (const auto& [call, make] : makers) {
    for (const CUresult code : {CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_INVALID_VALUE}) {
      const auto context = std::make_shared<Context>(driver, 0);
      fake_inject(call.c_str(), 1, code);
      try {
        make(context);
        expect(false, (call + " failed without an error").c_str());
      } catch (const CudaError& error) {
        expect(error.call == call && error.code == code && !error.is_sticky(), error.what());
        expect(error.is_out_of_memory() == (error.kind == FailureKind::kResource), "memory is a resource");
        expect(error.device != nullptr && error.device->call == call, "the report is kept in the failure");
      }
    }
  }
  // Destructors say nothing, whatever the driver says.
  for (const char* call : {"cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy", "cuCtxPushCurrent",
                           "cuCtxPopCurrent", "cuDevicePrimaryCtxRelease"}) {
    fake_reset(0, 0, 1);
    const auto context = std::make_shared<Context>(std::make_shared<Driver>(library), 0);
    const CudaEvent event(context, 0);
    const CudaGraph graph(context);
    const CudaGraphExec exec(context, graph);
    fake_inject(call, 1, CUDA_ERROR_LAUNCH_FAILED);
  }
}

}  // namespace

int main(int, char** arguments) {
  const std::string library = arguments[1], scenario = arguments[2];
  const std::map<std::string, std::pair<void (*)(const std::string&, int), int>> scenarios = {
      {"events", {&run_events, 0}},
      {"events without the target's wait", {&run_events, 1}},
      {"events without the draft's wait", {&run_events, 2}},
      {"graph", {&run_graph, 0}},
      {"graph without an edge", {&run_graph, 1}},
      {"owners", {&run_owners, 0}},
      {"shutdown", {&run_shutdown, 0}},
      {"faults", {&run_faults, 0}},
  };
  fake_reset(std::strtoull(arguments[3], nullptr, 10), 20, 2);
  const auto& [run, skip] = scenarios.at(scenario);
  run(library, skip);
  fake_reset(0, 0, 1);
  std::puts("as it should be");
}
