// The kinds of drafters, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>
#include <vector>

#include "drafters/chain/chain_drafter.h"
#include "drafters/diffusion/diffusion_drafter.h"
#include "drafters/eagle/eagle_drafter.h"
#include "drafters/lookup_drafter.h"
#include "drafters/model_drafter.h"
#include "python/arguments.h"

namespace py = pybind11;

namespace pearl {

void bind_drafters(py::module_& m) {
  py::class_<Drafter, std::shared_ptr<Drafter>>(m, "Drafter", "What fills the windows of a round.");

  py::class_<LookupDrafter, Drafter, std::shared_ptr<LookupDrafter>>(
      m, "LookupDrafter", "Drafts what followed the last tokens when they stood before.")
      .def(py::init([](int64_t pool_tokens) {
             check_between("pool_tokens", pool_tokens, 0, kMostIds);
             return std::make_shared<LookupDrafter>(pool_tokens);
           }),
           py::kw_only(), py::arg("pool_tokens") = 0,
           "pool_tokens: of earlier answers that are kept; 0: none.")
      .def_property_readonly("bytes", method(&LookupDrafter::bytes), "Of all indices; between runs.")
      .def(
          "set_costs",
          [](LookupDrafter& drafter, std::vector<int32_t> costs) {
            drafter.set_costs({std::move(costs), {}});
          },
          py::arg("costs"),
          "Between runs. costs: [n - 1] the time of a score over n rows in all, 1 to 1e9 in any unit; one "
          "over\n"
          "more rows takes as long as the last. Requests that adapt then have the windows whose tokens are "
          "the\n"
          "most for their time, none too. Empty: windows are as long as they are likely to stand.")
      .def("set_fills", method(&LookupDrafter::set_fills), py::arg("fills"),
           "For measurements, between runs: whether every window is filled, with whatever token.");

  py::class_<ModelDrafter, Drafter, std::shared_ptr<ModelDrafter>>(
      m, "ModelDrafter", "Drafts by a model, with a KV cache of its own.")
      .def(py::init([](std::shared_ptr<Executor> executor, std::optional<int32_t> mask_token,
                       std::vector<int32_t> target_ids, std::vector<int32_t> draft_ids) {
             return std::make_shared<ModelDrafter>(std::move(executor), mask_token,
                                                   DraftIds{std::move(target_ids), std::move(draft_ids)});
           }),
           py::arg("executor").none(false), py::kw_only(), py::arg("mask_token") = py::none(),
           py::arg("target_ids") = std::vector<int32_t>{}, py::arg("draft_ids") = std::vector<int32_t>{},
           "mask_token: of a model that fills a window in one pass; None: token by token. target_ids: the\n"
           "target's id of each row of the model's head, -1 for one that the target has not got. draft_ids:\n"
           "what the model is fed for each id of the target. Both: none where ids are the same.")
      .def(
          "set_branch_costs",
          [](ModelDrafter& drafter, std::vector<int32_t> scores, std::vector<int32_t> windows) {
            drafter.set_branch_costs({std::move(scores), std::move(windows)});
          },
          py::arg("scores"), py::arg("windows"),
          "Between runs, for several candidates: of a request that adapts as many windows lie beside one\n"
          "another as have the most tokens for their time. scores, windows: see ChainDrafter.set_costs.")
      .def("set_branches", method(&ModelDrafter::set_branches), py::arg("branches"),
           "For measurements, between runs: whether a sequence may have more than one window.");

  py::class_<ChainDrafter, Drafter, std::shared_ptr<ChainDrafter>>(
      m, "ChainDrafter", "Drafts by lookup where that is worth more than a window of the model, else by it.")
      .def(py::init([](std::shared_ptr<ModelDrafter> model, int64_t pool_tokens, double cost, bool for_all) {
             check_between("pool_tokens", pool_tokens, 0, kMostIds);
             return std::make_shared<ChainDrafter>(std::move(model), pool_tokens, cost, for_all);
           }),
           py::arg("model").none(false), py::kw_only(), py::arg("pool_tokens") = 0, py::arg("cost") = 0.0,
           py::arg("for_all") = true,
           "pool_tokens: see LookupDrafter. cost: of a pass of the model, in steps of the target. for_all:\n"
           "whether the lookup is asked for each request, and not only for those whose windows are weighed.")
      .def("set_costs", method(&ChainDrafter::set_costs), py::arg("scores"), py::arg("windows"),
           "Between runs: a request that adapts then has what is worth most for its time, a window of the\n"
           "lookup, one of the model, or none. scores: see LookupDrafter.set_costs. windows: [n - 1] the "
           "time of\n"
           "a window of n drafts of the model, in the same unit; a longer one takes as long as the last. "
           "Both\n"
           "empty: by the weights that are read.")
      .def_property_readonly("bytes", method(&ChainDrafter::bytes), "Of the lookup's indices; between runs.")
      .def("set_looks_up", method(&ChainDrafter::set_looks_up), py::arg("looks_up"),
           "For measurements, between runs: whether the lookup is asked.");

  py::class_<DiffusionDrafter, ModelDrafter, std::shared_ptr<DiffusionDrafter>>(
      m, "DiffusionDrafter", "Drafts by a model that fills a window of masks in a few passes.")
      .def(py::init<std::shared_ptr<Executor>, int32_t, int>(), py::arg("executor").none(false),
           py::kw_only(), py::arg("mask_token"), py::arg("num_passes"), "num_passes: of a window, at most.");

  py::class_<EagleDrafter, ModelDrafter, std::shared_ptr<EagleDrafter>>(
      m, "EagleDrafter", "Drafts by a head that is fed the taps of the target (EAGLE-3).")
      .def(py::init<std::shared_ptr<Executor>, std::vector<int32_t>>(), py::arg("head").none(false),
           py::kw_only(), py::arg("target_ids") = std::vector<int32_t>{},
           "target_ids: the target's id of each of the head's; none: they are the same.");
}

}  // namespace pearl
