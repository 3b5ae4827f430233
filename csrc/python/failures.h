// How a Failure of ours is raised in Python: as the error of pearl_rt.errors of its kind.
#pragma once

namespace pearl {

// Once for each module whose functions throw Failure.
void translate_failures();

}  // namespace pearl
