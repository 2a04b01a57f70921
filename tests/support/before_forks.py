"""What every fork would do again, done once by the server of forks, which imports this last.

Numba is made ready to load compiled loops: half a second of a core. What is imported by now is no
garbage: each full collection would look at it for a third of a second. No thread starts here.
"""

import gc

from numba.core.registry import cpu_target

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
gc.freeze()
