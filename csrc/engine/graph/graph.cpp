// SPDX-License-Identifier: Apache-2.0
#include "engine/graph/graph.h"

#include <stdexcept>

namespace ff::engine {
namespace {

constexpr idx kMostElements = idx{1} << 28;  // of a value, channels rounded up to 16
constexpr int kMostAct = static_cast<int>(Act::sigmoid);

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument("engine file: " + text); }

// How messages about an operation begin.
std::string prefix(const std::string& where, const std::string& name) {
  return where.empty() ? name + ": " : where + " (" + name + "): ";
}

// Collects an operation's names.
struct Namer {
  OpNames names;
  void number(const char* name, int&, int, int) { names.attrs.push_back(name); }
  void flag(const char* name, bool&) { names.attrs.push_back(name); }
  void act(const char* name, Act&) { names.attrs.push_back(name); }
  template <class E>
  void choice(const char* name, E&, E) {
    names.attrs.push_back(name);
  }
  void weights(const char* name, Weights&) { names.weights.push_back(name); }
};

template <class T>
OpNames names_of() {
  T op{};
  Namer namer;
  namer.names.code = static_cast<uint32_t>(T::kOp), namer.names.name = T::kName, namer.names.inputs = T::kInputs;
  op.fields(namer);
  return namer.names;
}

// Fills an operation's fields from the file's, in order.
struct Filler {
  const std::vector<int>& attrs;
  const std::vector<Weights>& given;
  const std::string& where;
  size_t attr = 0, weight = 0;

  void number(const char* name, int& field, int least, int most) {
    field = attrs[attr++];
    if (field < least || field > most)
      throw std::invalid_argument(where + name + ": expected " + std::to_string(least) + " to " + std::to_string(most) +
                                  ", got " + std::to_string(field));
  }
  void flag(const char* name, bool& field) {
    int v = 0;
    number(name, v, 0, 1);
    field = v == 1;
  }
  void act(const char* name, Act& field) {
    int v = 0;
    number(name, v, 0, kMostAct);
    field = static_cast<Act>(v);
  }
  template <class E>
  void choice(const char* name, E& field, E count) {
    int v = 0;
    number(name, v, 0, static_cast<int>(count) - 1);
    field = static_cast<E>(v);
  }
  void weights(const char*, Weights& field) { field = given[weight++]; }
};

void counted(const std::string& where, const char* what, size_t want, size_t got) {
  if (want != got)
    throw std::invalid_argument(where + what + ": expected " + std::to_string(want) + ", got " + std::to_string(got));
}

}  // namespace

std::vector<OpNames> op_table() {
  std::vector<OpNames> table;
  graph::FileOps::each([&](auto* none) { table.push_back(names_of<std::remove_pointer_t<decltype(none)>>()); });
  return table;
}

graph::AnyOp make_op(uint32_t code, const std::vector<int>& attrs, const std::vector<Weights>& weights,
                     const std::string& where) {
  static const std::vector<OpNames> table = op_table();
  std::optional<graph::AnyOp> made;
  size_t row = 0;
  graph::FileOps::each([&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    const OpNames& names = table[row++];
    if (names.code != code) return;
    const std::string whole = prefix(where, names.name);
    counted(whole, "number of attributes", names.attrs.size(), attrs.size());
    counted(whole, "number of weights", names.weights.size(), weights.size());
    T op{};
    Filler filler{attrs, weights, whole};
    op.fields(filler);
    if constexpr (std::is_same_v<T, graph::DilatedConv>)
      made = std::move(op.conv);
    else
      made = std::move(op);
  });
  if (!made) throw std::invalid_argument(where + ": op: expected a known code, got " + std::to_string(code));
  return *std::move(made);
}

void check_graph(const Graph& graph) {
  for (size_t i = 0; i < graph.values.size(); ++i) {
    const Shape& s = graph.values[i];
    if (idx{s.height} * s.width > kMostElements || (s.channels + idx{15}) * s.height * s.width > kMostElements)
      fail("value " + std::to_string(i) + ": expected at most " + std::to_string(kMostElements) + " elements, got (" +
           std::to_string(s.channels) + ", " + std::to_string(s.height) + ", " + std::to_string(s.width) + ")");
  }
  std::vector<bool> written(graph.values.size());
  written[static_cast<size_t>(graph.input)] = true;
  std::vector<Shape> inputs;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    const std::string where = "node " + std::to_string(i);
    inputs.clear();
    for (const int input : node.inputs) {
      if (!written[static_cast<size_t>(input)])
        fail(where + ": reads value " + std::to_string(input) + " before it is written");
      inputs.push_back(graph.shape(input));
    }
    const Shape want = output_shape(node.op, inputs, "engine file: " + where), got = graph.shape(node.output);
    const auto text = [](const Shape& s) {
      return "(" + std::to_string(s.channels) + ", " + std::to_string(s.height) + ", " + std::to_string(s.width) + ")";
    };
    if (want.channels != got.channels || want.height != got.height || want.width != got.width)
      fail(where + ": output: expected " + text(want) + ", got " + text(got));
    const auto output = static_cast<size_t>(node.output);
    if (written[output]) fail(where + ": writes value " + std::to_string(output) + ", which has been written");
    written[output] = true;
  }
  if (graph.outputs.empty()) fail("expected at least one output");
  for (size_t i = 0; i < written.size(); ++i)
    if (!written[i]) fail("value " + std::to_string(i) + ": no node writes it");
}

}  // namespace ff::engine
