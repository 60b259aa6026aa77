"""How CPU threads wait for each other. Import it before torch, which reads the setting when it loads.

torch's threads spin while they wait, so a second busy process slows a two-core machine several times
over: a quickstart step took 4.4 s instead of 0.34 s beside one other process, and 0.53 s with threads
that sleep. On an idle machine the two are alike. A value that is already set is kept.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
