// Conditional nodes of the fake driver, modules, and kernel nodes: the kernels of csrc/cuda/loop_kernels.h by
// their names, in C++ that was written from their PTX.
#include <array>
#include <cstring>
#include <map>

#include "graphs.h"

namespace fake {
namespace {

constexpr uint32_t kRunning = 1;
constexpr size_t kWords = 3, kTold = 2;  // that turn touches

// Kernel name -> the sizes of its parameters.
using Entries = std::map<std::string, std::vector<size_t>>;

struct Module : Object {
  Module(Context* context, Entries entries)
      : Object(Kind::kModule), context(context), entries(std::move(entries)) {}
  Context* const context;
  const Entries entries;
};

struct Function : Object {
  Function(Module* module, std::string name)
      : Object(Kind::kFunction), module(module), name(std::move(name)) {}
  Module* const module;
  const std::string name;
};

struct Peek {
  std::atomic<uint32_t>* allowed;
  uint32_t* words;
  static void run(void* self) {
    auto& p = *static_cast<Peek*>(self);
    p.words[0] = p.allowed->load(std::memory_order_acquire);
  }
};

struct Turn {
  const Conditional* condition;
  uint32_t* words;
  std::atomic<uint32_t>* told;
  const uint32_t* finish_reason;
  uint32_t num_slots, is_round;
  static void run(void* self) {
    auto& t = *static_cast<Turn*>(self);
    bool any = false;
    for (uint32_t slot = 0; slot < t.num_slots; ++slot) any = any || t.finish_reason[slot] == kRunning;
    t.words[1] += t.is_round;
    const bool goes_on = any && t.words[1] < t.words[0];
    if (!goes_on) {
      t.words[2] += 1;
      t.told[0].store(t.words[1], std::memory_order_relaxed);
      t.told[1].store(t.words[2], std::memory_order_release);
    }
    t.condition->value.store(goes_on ? 1 : 0);
  }
};

// The kernels that a text declares; none if it is no PTX.
Entries entries_of(const std::string& text) {
  Entries found;
  if (text.find(".version") == std::string::npos || text.find(".target") == std::string::npos) return found;
  const std::string mark = ".visible .entry ";
  for (size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at + 1)) {
    const size_t open = text.find('(', at), close = text.find(')', at);
    std::vector<size_t>& sizes = found[text.substr(at + mark.size(), open - at - mark.size())];
    for (size_t i = text.find(".param .u", open); i < close; i = text.find(".param .u", i + 1)) {
      sizes.push_back(text.compare(i + 9, 2, "64") == 0 ? 8 : 4);
    }
  }
  return found;
}

// The value of a parameter, of the size that the PTX says.
uint64_t value_of(Call& c, const Function& function, void* const* values, size_t index, size_t num_bytes) {
  const std::vector<size_t>& sizes = function.module->entries.at(function.name);
  if (sizes.at(index) != num_bytes) {
    c.refuse(kInvalidValue, function.name + " has other parameters than the fake knows");
  }
  uint64_t value = 0;
  std::memcpy(&value, values[index], num_bytes);
  return value;
}

template <typename T>
T* pointer_of(Call& c, const Function& function, void* const* values, size_t index, int device,
              size_t num_values) {
  const auto address = static_cast<uintptr_t>(value_of(c, function, values, index, 8));
  if (!is_memory(c.world, device, address, num_values * sizeof(uint32_t))) {
    c.refuse(kInvalidValue, "parameter " + std::to_string(index) + " of " + function.name + " is no memory " +
                                (device < 0 ? "that is pinned" : "of its device"));
  }
  return reinterpret_cast<T*>(address);
}

std::shared_ptr<Peek> make_peek(Call& c, const Function& f, void* const* values) {
  Peek peek{};
  peek.allowed = pointer_of<std::atomic<uint32_t>>(c, f, values, 0, -1, 1);
  peek.words = pointer_of<uint32_t>(c, f, values, 1, f.module->context->device, kWords);
  return std::make_shared<Peek>(peek);
}

std::shared_ptr<Turn> make_turn(Call& c, const Function& f, void* const* values, const Graph& graph) {
  Turn turn{};
  const int device = f.module->context->device;
  auto* const handle = reinterpret_cast<void*>(value_of(c, f, values, 0, 8));
  const auto& condition = c.object<Conditional>(handle, Kind::kConditional);
  const Graph* root = &graph;
  while (root->parent != nullptr) root = root->parent;
  if (condition.graph != root) c.refuse(kInvalidValue, "a conditional handle of another graph");
  if (condition.context != f.module->context) {
    c.refuse(kInvalidValue, "a conditional handle is set from its own context alone");
  }
  turn.condition = &condition;
  turn.words = pointer_of<uint32_t>(c, f, values, 1, device, kWords);
  turn.told = pointer_of<std::atomic<uint32_t>>(c, f, values, 2, -1, kTold);
  turn.num_slots = static_cast<uint32_t>(value_of(c, f, values, 4, 4));
  turn.finish_reason = pointer_of<const uint32_t>(c, f, values, 3, device, turn.num_slots);
  turn.is_round = static_cast<uint32_t>(value_of(c, f, values, 5, 4));
  return std::make_shared<Turn>(turn);
}

void check_block(Call& c, const pearl::CUDA_KERNEL_NODE_PARAMS_v2_st& p, unsigned num_threads) {
  const std::array<unsigned, 5> ones = {p.gridDimX, p.gridDimY, p.gridDimZ, p.blockDimY, p.blockDimZ};
  for (const unsigned one : ones) {
    if (one != 1) c.refuse(kInvalidValue, "more than one block, or none");
  }
  if (p.blockDimX != num_threads) {
    c.refuse(kInvalidValue, "the kernel is written for " + std::to_string(num_threads) + " threads");
  }
}

// "All unused bytes - that is, reserved0 and all bytes past the utilized union member - must be zero."
bool is_zero_behind(const pearl::CUgraphNodeParams_st& p) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&p);
  const size_t used = offsetof(pearl::CUgraphNodeParams_st, conditional) + sizeof(p.conditional);
  for (size_t i = used; i < sizeof(p); ++i) {
    if (bytes[i] != 0) return false;
  }
  return p.reserved0[0] == 0 && p.reserved0[1] == 0 && p.reserved0[2] == 0;
}

}  // namespace
}  // namespace fake

using namespace fake;
using pearl::CUfunction;
using pearl::CUgraph;
using pearl::CUgraphNode;
using pearl::CUmodule;

FAKE_EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return call("cuModuleLoadData", [&](Call& c) {
    Context& context = c.current();
    c.use(context, false);
    Entries entries = entries_of(static_cast<const char*>(image));
    if (entries.empty()) c.refuse(kInvalidPtx, "no PTX with a kernel");
    *module =
        static_cast<CUmodule>(c.world.add(std::make_unique<Module>(&context, std::move(entries)), false));
  });
}

FAKE_EXPORT CUresult cuModuleUnload(CUmodule handle) {
  return call("cuModuleUnload", [&](Call& c) {
    auto& module = c.object<Module>(handle, Kind::kModule);
    module.is_alive = false;
    for (Object* object : c.world.objects(Kind::kFunction)) {
      if (static_cast<Function*>(object)->module == &module) object->is_alive = false;
    }
    c.use(*module.context, false);
  });
}

FAKE_EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
  return call("cuModuleGetFunction", [&](Call& c) {
    auto& module = c.object<Module>(handle, Kind::kModule);
    c.use(*module.context, false);
    if (module.entries.count(name) == 0) c.refuse(kNotFound, std::string("no kernel is called ") + name);
    *function = static_cast<CUfunction>(c.world.add(std::make_unique<Function>(&module, name), true));
  });
}

FAKE_EXPORT CUresult cuGraphAddKernelNode(CUgraphNode* node, CUgraph handle, const CUgraphNode* after,
                                          size_t num_after,
                                          const pearl::CUDA_KERNEL_NODE_PARAMS_v2_st* parameters) {
  return call("cuGraphAddKernelNode", [&](Call& c) {
    auto& graph = c.object<Graph>(handle, Kind::kGraph);
    const auto& function = c.object<Function>(parameters->func, Kind::kFunction);
    if (parameters->kern != nullptr || parameters->extra != nullptr) {
      c.refuse(kInvalidValue, "both kern and func, or both kernelParams and extra");
    }
    NodeImage image;
    image.context = function.module->context;
    image.module = function.module;
    std::shared_ptr<void> argument;
    if (function.name == "pearl_loop_peek") {
      check_block(c, *parameters, 1);
      argument = make_peek(c, function, parameters->kernelParams);
      image.kernel = &Peek::run;
    } else if (function.name == "pearl_loop_turn") {
      check_block(c, *parameters, 32);
      argument = make_turn(c, function, parameters->kernelParams, graph);
      image.kernel = &Turn::run;
    } else {
      c.refuse(kNotSupported, "the fake does not know kernel " + function.name);
    }
    image.argument = argument.get();
    graph.arguments.push_back(std::move(argument));
    *node = static_cast<CUgraphNode>(
        add_node(c, graph, std::move(image), reinterpret_cast<void* const*>(after), num_after));
  });
}

FAKE_EXPORT CUresult cuGraphConditionalHandleCreate(pearl::CUgraphConditionalHandle* out, CUgraph handle,
                                                    pearl::CUcontext context, unsigned at_launch,
                                                    unsigned flags) {
  return call("cuGraphConditionalHandleCreate", [&](Call& c) {
    auto& graph = c.object<Graph>(handle, Kind::kGraph);
    auto& owner = c.object<Context>(context, Kind::kContext);
    if (flags != pearl::CU_GRAPH_COND_ASSIGN_DEFAULT) {
      c.refuse(kInvalidValue, "without a default the first value is whatever the launch before left");
    }
    if (graph.parent != nullptr)
      c.refuse(kNotSupported, "a handle of a body: the fake knows those of graphs");
    void* const made = c.world.add(std::make_unique<Conditional>(&graph, &owner, at_launch), true);
    *out = reinterpret_cast<uint64_t>(made);
  });
}

FAKE_EXPORT CUresult cuGraphAddNode(CUgraphNode* node, CUgraph handle, const CUgraphNode* after,
                                    size_t num_after, pearl::CUgraphNodeParams_st* parameters) {
  return call("cuGraphAddNode", [&](Call& c) {
    auto& graph = c.object<Graph>(handle, Kind::kGraph);
    pearl::CUDA_CONDITIONAL_NODE_PARAMS& p = parameters->conditional;
    if (parameters->type != pearl::CU_GRAPH_NODE_TYPE_CONDITIONAL ||
        p.type != pearl::CU_GRAPH_COND_TYPE_WHILE) {
      c.refuse(kNotSupported, "the fake knows WHILE nodes here, and no others");
    }
    if (!is_zero_behind(*parameters)) c.refuse(kInvalidValue, "unused bytes of the parameters are not zero");
    if (p.size != 1) c.refuse(kInvalidValue, "a WHILE node has one body");
    auto& condition = c.object<Conditional>(reinterpret_cast<void*>(p.handle), Kind::kConditional);
    if (condition.graph != &graph) c.refuse(kInvalidValue, "a conditional handle of another graph");
    if (condition.has_node) c.refuse(kInvalidValue, "a conditional handle that another node has");
    if (&c.object<Context>(p.ctx, Kind::kContext) != condition.context) {
      c.refuse(kInvalidValue, "a context that is not the conditional handle's");
    }
    auto made = std::make_unique<Graph>(nullptr);
    made->body_context = condition.context;
    made->parent = &graph;
    NodeImage image;
    image.condition = &condition;
    image.body = made.get();
    *node = static_cast<CUgraphNode>(
        add_node(c, graph, std::move(image), reinterpret_cast<void* const*>(after), num_after));
    condition.has_node = true;
    auto out = std::make_shared<CUgraph>(static_cast<CUgraph>(c.world.add(std::move(made), true)));
    p.phGraph_out = out.get();
    graph.arguments.push_back(std::move(out));
  });
}
