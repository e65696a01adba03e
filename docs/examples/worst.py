"""Error in percent under the strongest attack for each image.

python docs/examples/worst.py rdp-bench-out/export/predictions.csv
"""

import sys

import pandas as pd

frame = pd.read_csv(sys.argv[1])
attacked = frame[frame["attack"] != "clean"]
setting = ["grid", "dataset", "target", "eps", "defense"]
survived = attacked.groupby([*setting, "index"])["correct"].min()
errors = 100 * (1 - survived.groupby(setting).mean())
print(errors.round(1).to_string())
