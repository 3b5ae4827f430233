// Graphs of the fake driver: nodes and edges, snapshots of them, and runs with independent branches in
// parallel.
#include <algorithm>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "fake_cuda.h"
#include "memory.h"
#include "streams.h"

namespace fake {
namespace {

struct NodeImage {
  Context* context = nullptr;  // where it runs; null: nowhere, it is empty
  fake_kernel kernel = nullptr;
  void* argument = nullptr;
  std::optional<Copy> copy = std::nullopt;  // instead of a kernel
  bool is_child = false;
  std::vector<NodeImage> child;  // a child graph as it was when it was added
  std::vector<size_t> after;     // indices in the same graph
};

struct Graph : Object {
  explicit Graph(Context* context) : Object(Kind::kGraph), context(context) {}
  Context* const context;  // of kernels that tests add; null: made by cuGraphCreate
  std::vector<NodeImage> nodes;
};

struct Node : Object {
  Node(Graph* graph, size_t index) : Object(Kind::kNode), graph(graph), index(index) {}
  Graph* const graph;
  const size_t index;
};

// A node of an exec: child graphs are dissolved into their nodes, between two empty ones.
struct Task {
  Context* context;
  fake_kernel kernel;
  void* argument;
  std::optional<Copy> copy;
  std::vector<size_t> before;  // tasks that wait for this one
  uint32_t num_after = 0;      // tasks that this one waits for
};

struct Exec : Object {
  Exec() : Object(Kind::kExec) {}
  std::vector<Task> tasks;
  std::vector<size_t> roots;
  Record* last_launch = nullptr;
};

size_t add_task(Exec* exec, const NodeImage& node, const std::vector<size_t>& after) {
  const size_t index = exec->tasks.size();
  exec->tasks.push_back(
      {node.context, node.kernel, node.argument, node.copy, {}, static_cast<uint32_t>(after.size())});
  for (size_t earlier : after) exec->tasks[earlier].before.push_back(index);
  if (after.empty()) exec->roots.push_back(index);
  return index;
}

// Adds nodes, the first of which wait for `entry` -> those that nothing waits for.
std::vector<size_t> add_tasks(Exec* exec, const std::vector<NodeImage>& nodes,
                              const std::vector<size_t>& entry) {
  std::vector<size_t> ends;  // of each node
  std::vector<bool> is_last(nodes.size(), true);
  for (const NodeImage& node : nodes) {
    std::vector<size_t> after = node.after.empty() ? entry : std::vector<size_t>{};
    for (size_t earlier : node.after) {
      after.push_back(ends[earlier]);
      is_last[earlier] = false;
    }
    if (!node.is_child) {
      ends.push_back(add_task(exec, node, after));
      continue;
    }
    const size_t begin = add_task(exec, {}, after);
    std::vector<size_t> inner = add_tasks(exec, node.child, {begin});
    if (inner.empty()) inner.push_back(begin);
    ends.push_back(add_task(exec, {}, inner));
  }
  std::vector<size_t> last;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (is_last[i]) last.push_back(ends[i]);
  }
  return last;
}

// One launch of an exec. Threads meet only in the counts of tasks, which are the edges of the graph.
class GraphRun {
 public:
  GraphRun(const Exec& exec, int max_delay_us)
      : exec_(exec), max_delay_us_(max_delay_us), left_(exec.tasks.size()) {
    for (size_t i = 0; i < exec.tasks.size(); ++i) left_[i].store(exec.tasks[i].num_after);
  }

  // Runs the ready tasks and what becomes ready through them: the first here, each other in a thread of its
  // own.
  void run(std::vector<size_t> ready, Random random) {
    std::vector<std::thread> branches;
    while (!ready.empty()) {
      for (size_t i = ready.size() - 1; i > 0; --i)
        std::swap(ready[i], ready[random.below(static_cast<int>(i) + 1)]);
      for (size_t i = 1; i < ready.size(); ++i) {
        branches.emplace_back(&GraphRun::run, this, std::vector<size_t>{ready[i]}, Random(random.next()));
      }
      const Task& task = exec_.tasks[ready.front()];
      random.delay(max_delay_us_);
      if (task.context != nullptr && !has_failed()) run_task(task);
      ready.clear();
      for (size_t later : task.before) {
        if (left_[later].fetch_sub(1, std::memory_order_acq_rel) == 1) ready.push_back(later);
      }
    }
    for (std::thread& branch : branches) branch.join();
  }

 private:
  // A fault on any of its devices ends a graph.
  bool has_failed() const {
    return std::any_of(exec_.tasks.begin(), exec_.tasks.end(), [](const Task& task) {
      return task.context != nullptr && task.context->error.load(std::memory_order_relaxed) != 0;
    });
  }
  static void run_task(const Task& task) {
    if (task.copy) return task.copy->run(*task.context, "cuGraphAddMemcpyNode");
    run_kernel(*task.context, task.kernel, task.argument);
  }

  const Exec& exec_;
  const int max_delay_us_;
  std::vector<std::atomic<uint32_t>> left_;
};

struct LaunchWork : Work {
  LaunchWork(const Exec* exec, Record* before, Record* done) : exec(exec), before(before), done(done) {}
  void run(Stream& stream) override {
    if (before != nullptr) before->done.wait_for(1);  // launches of one exec never overlap
    GraphRun(*exec, stream.max_delay_us()).run(exec->roots, Random(stream.random().next()));
  }
  void finish() override { done->finish(); }
  const Exec* const exec;
  Record* const before;
  Record* const done;
};

struct UploadWork : Work {
  void run(Stream&) override {}
};

void* add_node(Call& c, Graph& graph, NodeImage image, void* const* after, size_t num_after) {
  for (size_t i = 0; i < num_after; ++i) {
    const auto& node = c.object<Node>(after[i], Kind::kNode);
    if (node.graph != &graph) c.refuse(kInvalidValue, "a dependency is a node of another graph");
    if (std::count(image.after.begin(), image.after.end(), node.index) != 0) {
      c.refuse(kInvalidValue, "a dependency is given twice");
    }
    image.after.push_back(node.index);
  }
  graph.nodes.push_back(std::move(image));
  return c.world.add(std::make_unique<Node>(&graph, graph.nodes.size() - 1), graph.is_tests_own);
}

void* instantiate(Call& c, const Graph& graph, bool is_tests_own) {
  auto exec = std::make_unique<Exec>();
  add_tasks(exec.get(), graph.nodes, {});
  return c.world.add(std::move(exec), is_tests_own);
}

void destroy_exec(Call& c, void* handle) {
  auto& exec = c.object<Exec>(handle, Kind::kExec);
  if (exec.last_launch != nullptr && !exec.last_launch->is_done()) c.violation("the exec is at work");
  exec.is_alive = false;
}

void destroy_graph(Call& c, Graph& graph) {
  graph.is_alive = false;
  for (Object* object : c.world.objects(Kind::kNode)) {
    if (static_cast<Node*>(object)->graph == &graph) object->is_alive = false;
  }
}

}  // namespace
}  // namespace fake

using namespace fake;
using pearl::CUgraph;
using pearl::CUgraphExec;
using pearl::CUgraphNode;
using pearl::CUstream;

FAKE_EXPORT void* fake_graph_add(void* handle, fake_kernel kernel, void* argument, void* const* after,
                                 size_t num_after) {
  Call c("fake_graph_add");
  try {
    auto& graph = c.object<Graph>(handle, Kind::kGraph);
    Context* const context = graph.context == nullptr ? &c.current() : graph.context;
    return add_node(c, graph, {context, kernel, argument, {}, false, {}, {}}, after, num_after);
  } catch (const Refusal&) {
    return nullptr;
  }
}

FAKE_EXPORT void* fake_graph_create(int device, fake_kernel kernel, void* argument) {
  void* handle = nullptr;
  {
    World& world = World::get();
    const std::lock_guard<std::mutex> lock(world.lock);
    handle = world.add(std::make_unique<Graph>(world.contexts.at(device)), true);
  }
  if (kernel != nullptr) fake_graph_add(handle, kernel, argument, nullptr, 0);
  return handle;
}

FAKE_EXPORT void* fake_graph_exec(void* handle) {
  Call c("fake_graph_exec");
  try {
    return instantiate(c, c.object<Graph>(handle, Kind::kGraph), true);
  } catch (const Refusal&) {
    return nullptr;
  }
}

FAKE_EXPORT void fake_graph_exec_destroy(void* handle) {
  Call c("fake_graph_exec_destroy");
  try {
    destroy_exec(c, handle);
  } catch (const Refusal&) {
  }
}

FAKE_EXPORT CUresult cuGraphCreate(CUgraph* graph, unsigned flags) {
  return call("cuGraphCreate", [&](Call& c) {
    if (flags != 0) c.refuse(kInvalidValue, "flags are not 0");
    c.use(c.current(), false);
    *graph = static_cast<CUgraph>(c.world.add(std::make_unique<Graph>(nullptr), false));
  });
}

FAKE_EXPORT CUresult cuGraphDestroy(CUgraph handle) {
  return call("cuGraphDestroy", [&](Call& c) { destroy_graph(c, c.object<Graph>(handle, Kind::kGraph)); });
}

FAKE_EXPORT CUresult cuGraphAddChildGraphNode(CUgraphNode* node, CUgraph handle, const CUgraphNode* after,
                                              size_t num_after, CUgraph child_handle) {
  return call("cuGraphAddChildGraphNode", [&](Call& c) {
    auto& graph = c.object<Graph>(handle, Kind::kGraph);
    const auto& child = c.object<Graph>(child_handle, Kind::kGraph);
    if (&graph == &child) c.refuse(kInvalidValue, "a graph as its own child");
    NodeImage image;
    image.is_child = true;
    image.child = child.nodes;
    *node = static_cast<CUgraphNode>(
        add_node(c, graph, std::move(image), reinterpret_cast<void* const*>(after), num_after));
  });
}

FAKE_EXPORT CUresult cuGraphAddMemcpyNode(CUgraphNode* node, CUgraph handle, const CUgraphNode* after,
                                          size_t num_after, const pearl::CUDA_MEMCPY3D* copy,
                                          pearl::CUcontext context) {
  return call("cuGraphAddMemcpyNode", [&](Call& c) {
    auto& graph = c.object<Graph>(handle, Kind::kGraph);
    const pearl::CUDA_MEMCPY3D row = *copy;
    const bool is_row = row.Height == 1 && row.Depth == 1 && row.WidthInBytes > 0 &&
                        row.srcMemoryType == pearl::CU_MEMORYTYPE_UNIFIED &&
                        row.dstMemoryType == pearl::CU_MEMORYTYPE_UNIFIED && row.srcXInBytes == 0 &&
                        row.dstXInBytes == 0 && row.reserved0 == nullptr && row.reserved1 == nullptr;
    if (!is_row) c.refuse(kInvalidValue, "not one row between two unified addresses");
    NodeImage image;
    image.context = &c.object<Context>(context, Kind::kContext);
    image.copy = legal_copy(c, row.dstDevice, row.srcDevice, row.WidthInBytes);
    *node = static_cast<CUgraphNode>(
        add_node(c, graph, std::move(image), reinterpret_cast<void* const*>(after), num_after));
  });
}

FAKE_EXPORT CUresult cuGraphAddEmptyNode(CUgraphNode* node, CUgraph handle, const CUgraphNode* after,
                                         size_t num_after) {
  return call("cuGraphAddEmptyNode", [&](Call& c) {
    auto& graph = c.object<Graph>(handle, Kind::kGraph);
    *node =
        static_cast<CUgraphNode>(add_node(c, graph, {}, reinterpret_cast<void* const*>(after), num_after));
  });
}

FAKE_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph handle,
                                                 unsigned long long flags) {
  return call("cuGraphInstantiateWithFlags", [&](Call& c) {
    if ((flags & ~8ULL) != 0) c.refuse(kInvalidValue, "flags are not 0 or USE_NODE_PRIORITY");
    c.use(c.current(), false);
    *exec = static_cast<CUgraphExec>(instantiate(c, c.object<Graph>(handle, Kind::kGraph), false));
  });
}

FAKE_EXPORT CUresult cuGraphExecDestroy(CUgraphExec handle) {
  return call("cuGraphExecDestroy", [&](Call& c) { destroy_exec(c, handle); });
}

FAKE_EXPORT CUresult cuGraphUpload(CUgraphExec handle, CUstream stream) {
  return call("cuGraphUpload", [&](Call& c) {
    c.object<Exec>(handle, Kind::kExec);
    usable_stream(c, stream, true).push(std::make_unique<UploadWork>());
  });
}

FAKE_EXPORT CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  return call("cuGraphLaunch", [&](Call& c) {
    auto& exec = c.object<Exec>(handle, Kind::kExec);
    Stream& stream = usable_stream(c, stream_handle, true);
    // A graph may span devices; one that has nothing to do on its stream's was launched on a wrong one.
    const Context* other = nullptr;
    bool has_own = false;
    for (const Task& task : exec.tasks) {
      if (task.context == nullptr) continue;
      has_own = has_own || task.context == stream.context;
      other = task.context == stream.context ? other : task.context;
    }
    if (other != nullptr && !has_own) {
      c.violation("kernels of device " + std::to_string(other->device) + " on a stream of device " +
                  std::to_string(stream.context->device));
    }
    Record* const done = c.world.new_record(stream.context);
    stream.push(std::make_unique<LaunchWork>(&exec, exec.last_launch, done));
    exec.last_launch = done;
  });
}
