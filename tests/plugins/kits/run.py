"""Asks the chosen model one question, as VLMEvalKit does with each row of a dataset."""

import argparse
import json

from vlmeval.config import supported_VLM

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--model", nargs="+")
    parser.add_argument("--work-dir")
    args = parser.parse_args()
    model = supported_VLM[args.model[0]]()
    model.set_dump_image(None)
    with open(args.data[0]) as file:
        message = json.load(file)
    with open(f"{args.work_dir}/{args.model[0]}.json", "w") as file:
        json.dump(model.generate(message=message, dataset="toy"), file)
