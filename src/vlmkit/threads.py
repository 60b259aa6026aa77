"""How CPU threads wait for each other. Import it before torch, which reads the setting when it loads.

torch's threads spin while they wait, so any other busy process costs far more than its share of the
cores. Forward and backward of a quickstart step on two cores took 0.31 s idle and 0.85 s beside one
busy Python loop; with threads that sleep, 0.35 s and 0.50 s. The small loss on an idle machine is the
price of a job that survives a browser. `OMP_WAIT_POLICY=ACTIVE` chooses spinning: a value that is set is
kept.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
