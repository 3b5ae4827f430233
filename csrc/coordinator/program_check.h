// Checks a program before it runs: each list has the steps that the coordinator's state needs, and events
// order the steps of two lanes that share one memory. pearl_rt/strategy/program.py also checks two memories.
#pragma once

#include <cstddef>

#include "core/program.h"

namespace pearl {

// Throws Failure(kRequest): the target's prologue is prefill, then first; each of its rounds scores, then
// verifies; the draft's lane drafts once a round, and begins behind an event that follows the first token.
void check_program(const Program& program, size_t num_lanes);

// Throws Failure(kRequest) for a checked program that can deadlock or race: the rule of check() of
// pearl_rt/strategy/program.py, for one memory.
void check_order(const Program& program);

}  // namespace pearl
