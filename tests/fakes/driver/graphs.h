// Graphs of the fake driver, as graphs.cpp runs them and conditionals.cpp adds to them.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fake_cuda.h"
#include "memory.h"
#include "streams.h"

namespace fake {

struct Exec;
struct Graph;

// What a conditional handle stands for.
struct Conditional : Object {
  Conditional(Graph* graph, Context* context, unsigned at_launch)
      : Object(Kind::kConditional), graph(graph), context(context), at_launch(at_launch) {}
  Graph* const graph;
  Context* const context;
  const unsigned at_launch;
  bool has_node = false;
  mutable std::atomic<uint32_t> value{0};
};

struct NodeImage {
  Context* context = nullptr;  // where it runs; null: nowhere, it is empty
  fake_kernel kernel = nullptr;
  void* argument = nullptr;
  std::optional<Copy> copy = std::nullopt;  // instead of a kernel
  bool is_child = false;
  std::vector<NodeImage> child;            // a child graph as it was when it was added
  std::vector<size_t> after;               // indices in the same graph
  const Object* module = nullptr;          // that its kernel is of
  const Conditional* condition = nullptr;  // of a WHILE node
  const Graph* body = nullptr;             // of the same
};

struct Graph : Object {
  explicit Graph(Context* context) : Object(Kind::kGraph), context(context) {}
  Context* const context;  // of kernels that tests add; null: made by cuGraphCreate
  std::vector<NodeImage> nodes;
  bool has_events = false;                       // as the capture of an external event leaves them
  const Context* body_context = nullptr;         // of the body of a conditional node, and of all its nodes
  Graph* parent = nullptr;                       // which has that node
  std::vector<std::shared_ptr<void>> arguments;  // of kernel nodes
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
  const Object* module = nullptr;
  const Conditional* condition = nullptr;  // a loop's
  std::shared_ptr<const Exec> body = nullptr;
};

struct Exec : Object {
  Exec() : Object(Kind::kExec) {}
  std::vector<Task> tasks;
  std::vector<size_t> roots;
  Record* last_launch = nullptr;
};

// Refuses what the graph cannot hold.
void* add_node(Call& c, Graph& graph, NodeImage image, void* const* after, size_t num_after);
bool has_conditions(const std::vector<NodeImage>& nodes);

}  // namespace fake
