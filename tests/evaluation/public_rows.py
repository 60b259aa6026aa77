"""A few rows of each public benchmark, made up here, in files of the form in which they are published."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = Mapping[str, Any]
WIDTH, HEIGHT = 40, 20


def png(color: str = "red", size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


PICTURE = base64.b64encode(png()).decode()
OTHER = base64.b64encode(png("blue")).decode()
STRUCT = {"bytes": png(), "path": "a.png"}


def tsv(path: Path, *rows: Row, delimiter: str = "\t") -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, columns, delimiter=delimiter, restval="")
        out.writeheader()
        out.writerows(rows)


def parquet(path: Path, *rows: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def jsonl(path: Path, *rows: Row) -> None:
    text(path, "".join(json.dumps(row) + "\n" for row in rows))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png())


def choice(index: Any = "1", answer: str = "B", **more: Any) -> dict[str, Any]:
    """As VLMEvalKit has it."""
    return {
        **{"index": index, "question": "What is it?", "A": "a cup", "B": "a hat", "C": "a cat"},
        **{"D": "a dog", "answer": answer, "image": PICTURE, "category": "things", **more},
    }


def vlmevalkit(name: str, *rows: Row) -> Callable[[Path], None]:
    return lambda root: tsv(root / name, *rows)


def mmmu(root: Path) -> None:
    both = f"['{PICTURE}', '{OTHER}']"
    tsv(
        root / "MMMU_DEV_VAL.tsv",
        choice("1", split="dev"),
        choice("2", question="Is <image 2> like <image 1>?", image=both, split="validation"),
        choice(
            "3",
            "['0.5', '1/2']",
            A="",
            B="",
            C="",
            D="",
            question="How much?\nSay.",
            split="validation",
        ),
    )


def mmmu_pro(root: Path) -> None:
    options = str([f"option {i}" for i in range(10)])
    standard = {
        **{"id": "test_Art_1", "question": "See <image 1>.", "options": options, "answer": "J"},
        **{"image_1": STRUCT, "image_2": None, "subject": "Art"},
    }
    vision = {
        "id": "test_Art_1",
        "image": STRUCT,
        "options": options,
        "answer": "C",
        "subject": "Art",
    }
    parquet(root / "MMMU_Pro/standard (10 options)/test-0.parquet", standard)
    parquet(root / "MMMU_Pro/vision/test-0.parquet", vision)


def mathvista(root: Path) -> None:
    shared = {"decoded_image": STRUCT, "metadata": {"task": "geometry", "context": "figure"}}
    parquet(
        root / "MathVista/data/testmini-0.parquet",
        {
            **{
                "pid": "1",
                "query": "Which? Choices:\n(A) 3\n(B) 4",
                "choices": ["3", "4"],
                "answer": "4",
            },
            **{"question_type": "multi_choice", **shared},
        },
        {
            **{"pid": "2", "query": "How many?", "choices": None, "answer": "1.2"},
            **{"question_type": "free_form", **shared},
        },
    )


def mathvision(root: Path) -> None:
    shared = {"decoded_image": STRUCT, "level": 3, "subject": "algebra"}
    parquet(
        root / "MathVision/data/test-0.parquet",
        {
            "id": "1",
            "question": "<image1> Which?",
            "options": ["A", "B", "C"],
            "answer": "C",
            **shared,
        },
        {"id": "2", "question": "How much is <image1>?", "options": [], "answer": "12", **shared},
    )


def visulogic(root: Path) -> None:
    row = {
        "id": "00000",
        "question": "Which comes next?",
        "label": "D",
        "image_path": "images/0.png",
    }
    jsonl(root / "VisuLogic/data.jsonl", {**row, "tag": "Spatial Reasoning"})
    picture(root / "VisuLogic/images/0.png")


def visualpuzzles(root: Path) -> None:
    parquet(
        root / "VisualPuzzles/data/test-0.parquet",
        *(
            {
                "id": i,
                "image": STRUCT,
                "category": "Algorithmic",
                "question": "Which?",
                "options": options,
            }
            | {"answer": "B"}
            for i, options in enumerate((["4", "5", "6", "7"], None))
        ),
    )


def mmbench(name: str) -> Callable[[Path], None]:
    rows = [
        choice("7", hint="Look.", **{"l2-category": "coarse"}),
        choice("1000007", "A", hint="Look.", image="7", **{"l2-category": "coarse"}),
        choice("8", "A", C="", D="", image="7", **{"l2-category": "coarse"}),
    ]
    return vlmevalkit(name, *rows)


def hallusion(root: Path) -> None:
    shared = {"image": PICTURE, "category": "VD", "l2-category": "figure", "question": "Is it so?"}
    tsv(
        root / "HallusionBench.tsv",
        {"index": "hallusion_VD_figure_1_0_0", "answer": "Yes", **shared},
        {"index": "hallusion_VD_figure_1_1_0", "answer": "No", **shared},
        {"index": "hallusion_VS_figure_2_0_0", "answer": "No", **shared, "image": ""},
    )


def answered(
    name: str, answer: str = "['blue', 'sky blue']", **more: Any
) -> Callable[[Path], None]:
    row = {"index": "1", "image": PICTURE, "question": "Which colour?", "answer": answer, **more}
    return vlmevalkit(name, row)


def ocrbench(root: Path) -> None:
    shared = {"image": PICTURE, "question": "What is written?"}
    formula = "Handwritten Mathematical Expression Recognition"
    tsv(
        root / "OCRBench.tsv",
        {"index": "1", "answer": "['Café']", "category": "Regular Text Recognition", **shared},
        {"index": "2", "answer": "['x ^ 2']", "category": formula, **shared},
    )


def omnidocbench(root: Path) -> None:
    def page(name: str, language: str) -> dict[str, Any]:
        attributes = {"language": language, "data_source": "book", "layout": "single_column"}
        blocks: list[dict[str, Any]] = [
            {
                "category_type": "table",
                "order": 3,
                "html": "<table><tr><td>a</td><td>b</td></tr></table>",
            },
            {"category_type": "title", "order": 1, "text": "Of Hats"},
            {"category_type": "equation_isolated", "order": 2, "latex": "$$ x^2 + 1 $$"},
            {"category_type": "text_block", "order": 4, "text": "They are\nworn.", "ignore": False},
            {"category_type": "text_block", "order": 5, "text": "unreadable", "ignore": True},
            {"category_type": "page_number", "order": None, "text": "7"},
            {"category_type": "figure", "order": 6},
        ]
        return {
            "layout_dets": blocks,
            "page_info": {"image_path": name, "page_attribute": attributes},
        }

    pages = [
        page("a.png", "english"),
        page("b.png", "simplified_chinese"),
        page("c.png", "en_ch_mixed"),
    ]
    text(root / "OmniDocBench/OmniDocBench.json", json.dumps(pages))
    for name in "abc":
        picture(root / f"OmniDocBench/images/{name}.png")


def refcoco(root: Path) -> None:
    name = "coco/train2014/1.png"
    row = {"image": name, "sent": "left hat", "bbox": [4.0, 2.0, 20.0, 10.0]}
    for split in ("refcoco_testA", "refcoco+_val"):
        jsonl(root / f"refcoco/{split}.jsonl", {**row, "height": HEIGHT, "width": WIDTH})
    picture(root / "refcoco" / name)


def countbench(root: Path) -> None:
    row = {"image": STRUCT, "text": "Ten hats", "question": "How many hats?", "number": 10}
    parquet(root / "CountBenchQA/data/test-0.parquet", row)


ODINW = {
    "aerial_maritime_drone": "AerialMaritimeDrone/large/test",
    "aquarium": "Aquarium/Aquarium Combined.v2-raw-1024.coco/test",
    "cottontail_rabbits": "CottontailRabbits/test",
    "egohands": "EgoHands/generic/test",
    "mushrooms": "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco/test",
    "packages": "Packages/Raw/test",
    "pascal_voc": "PascalVOC/valid",
    "pistols": "pistols/export",
    "pothole": "pothole/test",
    "raccoon": "Raccoon/Raccoon.v2-raw.coco/test",
    "shellfish": "ShellfishOpenImages/raw/test",
    "thermal": "thermalDogsAndPeople/test",
    "vehicles": "VehiclesOpenImages/416x416/test",
}


def odinw(root: Path) -> None:
    content = {
        "images": [{"id": 3, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [
            {"id": 1, "name": "dog"},
            {"id": 2, "name": "Fire-truck"},
            {"id": 9, "name": "none"},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 1, "bbox": [4, 2, 16, 8], "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 2, "bbox": [20, 10, 10, 5], "iscrowd": 0},
        ],
    }
    for name, folder in ODINW.items():
        prefix = "test_" if name == "pistols" else ""
        place = root / "odinw" / folder
        text(place / f"{prefix}annotations_without_background.json", json.dumps(content))
        picture(place / "a.png")


def omni3d(name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        box = {
            **{"image_id": 5, "category_id": 1, "valid3D": True, "behind_camera": False},
            **{"center_cam": [0.5, 0.1, 3.0], "dimensions": [0.5, 0.8, 1.2], "truncation": 0.0},
            **{"R_cam": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], "visibility": 1.0, "lidar_pts": -1},
        }
        content = {
            "images": [
                {"id": 5, "file_path": "scenes/0.png", "width": WIDTH, "height": HEIGHT}
                | {"K": [[500, 0, 20], [0, 500, 10], [0, 0, 1]]}
            ],
            "categories": [{"id": 1, "name": "chair"}, {"id": 2, "name": "night stand"}],
            "annotations": [
                {"id": 1, **box},
                {"id": 2, **box, "category_id": 2, "R_cam": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]},
                {"id": 3, **box, "truncation": 0.5},
            ],
        }
        text(root / "Omni3D" / name, json.dumps(content))
        picture(root / "scenes/0.png")

    return write


def erqa(root: Path) -> None:
    row = {
        "question_id": "ERQA_1",
        "question": "Where? Choices: A. left. B. right. C. up. D. down.",
    }
    more = {"answer": "A", "question_type": "Pointing", "images": [STRUCT, STRUCT]}
    parquet(root / "ERQA/data/test-0.parquet", {**row, **more})


def vsi_bench(root: Path) -> None:
    shared = {"dataset": "scannet", "scene_name": "scene0011_00", "question": "Which, or how many?"}
    parquet(
        root / "VSI-Bench/test-0.parquet",
        {
            "id": 0,
            "question_type": "object_counting",
            "options": None,
            "ground_truth": "4",
            **shared,
        },
        {"id": 1, "question_type": "object_rel_distance", "options": ["A. tv", "B. sofa"]}
        | {"ground_truth": "B", **shared},
    )


def embspatial(root: Path) -> None:
    row = {
        "question_id": "mp3d_0",
        "question": "How are they?",
        "image": PICTURE,
        "relation": "above",
    }
    more = {"answer_options": ["The cup is above.", "The cup is inside."], "answer": 1}
    text(root / "EmbSpatial-Bench/embspatial_bench.json", json.dumps([{**row, **more}]))


def mask() -> bytes:
    out = io.BytesIO()
    drawn = Image.new("L", (WIDTH, HEIGHT))
    drawn.paste(255, (10, 5, 20, 10))
    drawn.save(out, "PNG")
    return out.getvalue()


def refspatial(root: Path) -> None:
    row = {
        **{"id": 0, "object": "the cup", "prompt": "Point to the cup left of the hat.", "step": 2},
        **{"suffix": "Answer as tuples.", "rgb": STRUCT, "mask": {"bytes": mask(), "path": None}},
    }
    for split in ("location", "placement"):
        parquet(root / f"RefSpatial-Bench/data/{split}-00000-of-00001.parquet", row)


def robospatial(root: Path) -> None:
    ask = (
        "Where is free space? Your answer should be formatted as a list of tuples, i.e. [(x1, y1), ...], "
        "where each tuple contains the coordinates. The coordinates should be between 0 and 1, indicating "
        "the normalized pixel locations of the points."
    )
    corners = "[(0.2, 0.4), (0.5, 0.4), (0.5, 0.8), (0.2, 0.8)]"
    rows = [
        {"category": "context", "question": ask, "answer": corners, "img": STRUCT},
        {"category": "compatibility", "question": "Can it fit?", "answer": "no", "img": STRUCT},
    ]
    parquet(root / "RoboSpatial-Home/data/all-0.parquet", *rows)


def muirbench(root: Path) -> None:
    row = {
        **{"idx": "1", "task": "Ordering", "image_relation": "Temporal", "image_type": "Photo"},
        **{"question": "Which comes after <image>?", "options": ["<image>", "none"], "answer": "A"},
        "image_list": [STRUCT, {"bytes": png("blue"), "path": "b.png"}],
    }
    parquet(root / "MUIRBENCH/data/test-0.parquet", row)


def mvbench(root: Path) -> None:
    row = {
        "video": "1.mp4",
        "question": "What happens?",
        "candidates": ["Yes.", "No."],
        "answer": "No.",
    }
    text(root / "MVBench/json/action_sequence.json", json.dumps([{**row, "start": 1.5, "end": 4}]))
    twice = {**row, "candidates": ["No.", "Yes.", "No."]}
    text(root / "MVBench/json/action_count.json", json.dumps([twice]))
    text(root / "MVBench/json/episodic_reasoning.json", json.dumps([{**row, "video": "clip"}]))
    for i in range(4):
        picture(root / f"MVBench/video/tvqa/frames_fps3_hq/clip/{i:05}.jpg")


def video_mme(root: Path) -> None:
    row = {
        **{
            "video_id": "001",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "History",
        },
        **{"url": "", "videoID": "abc", "question_id": "001-1", "task_type": "Counting Problem"},
        **{"question": "How many?", "options": ["A. 1.", "B. 2.", "C. 3.", "D. 4."], "answer": "C"},
    }
    parquet(root / "Video-MME/videomme/test-0.parquet", row)


def mlvu(root: Path) -> None:
    row = {"video": "m.mp4", "duration": 480.0, "question": "Who?", "candidates": ["she", "he"]}
    for name in (
        "1_plotQA",
        "2_needle",
        "3_ego",
        "4_count",
        "5_order",
        "6_anomaly_reco",
        "7_topic_reasoning",
    ):
        kind = {"answer": "he", "question_type": name[2:]}
        text(root / f"MLVU/json/{name}.json", json.dumps([{**row, **kind}]))


def lvbench(root: Path) -> None:
    ask = {
        "uid": "1",
        "question": "When?\n(A) first\n(B) last\n(C) never\n(D) twice",
        "answer": "B",
    }
    more = {**ask, "uid": "2", "question_type": ["key information retrieval"]}
    jsonl(
        root / "LVBench/video_info.meta.jsonl", {"key": "Cm7", "type": "cartoon", "qa": [ask, more]}
    )


def charades(root: Path) -> None:
    row = {"video": "3MSZA.mp4", "caption": "person turn a light on.", "timestamp": [24.3, 30.4]}
    parquet(root / "charades_sta/data/test-0.parquet", row)


def video_mmmu(root: Path) -> None:
    row = {"id": "validation_Art_1", "question": "What is it?", "answer": "B", "image": None}
    options = ["A. red", "B. blue"]
    parquet(root / "VideoMMMU/Perception/test-0.parquet", {**row, "options": options})
    adapted = {**row, "question": "And <image 1>?", "image": STRUCT}
    opened = {**row, "id": "validation_Art_2", "options": [], "answer": "12"}
    parquet(root / "VideoMMMU/Comprehension/test-0.parquet", {**row, "options": options})
    parquet(root / "VideoMMMU/Adaptation/test-0.parquet", {**adapted, "options": options}, opened)


def screenspot_pro(root: Path) -> None:
    row = {
        **{"img_filename": "cad/1.png", "bbox": [10, 5, 20, 10], "instruction": "save the file"},
        **{"id": "cad_0", "application": "cad", "platform": "windows", "img_size": [WIDTH, HEIGHT]},
        **{"ui_type": "icon", "group": "CAD"},
    }
    text(root / "ScreenSpot-Pro/annotations/cad_windows.json", json.dumps([row]))
    picture(root / "ScreenSpot-Pro/images/cad/1.png")


def mmlu_pro(root: Path) -> None:
    row = {
        **{"question_id": 70, "question": "Which?", "options": [f"o{i}" for i in range(10)]},
        **{"answer": "I", "answer_index": 8, "cot_content": "", "category": "business", "src": "x"},
    }
    parquet(root / "MMLU-Pro/data/test-0.parquet", row)


def gpqa(root: Path) -> None:
    wrong = {f"Incorrect Answer {i}": f"wrong, {i}" for i in (1, 2, 3)}
    rows = [
        {"Record ID": f"rec{i}", "Question": "Why,\nthen?", "Correct Answer": "so ", **wrong}
        | {"High-level domain": "Physics", "Subdomain": "Optics"}
        for i in range(3)
    ]
    tsv(root / "gpqa_diamond.csv", *rows, delimiter=",")


def supergpqa(root: Path) -> None:
    row = {"uuid": "u1", "question": "Which?", "options": ["a", "b", "c"], "answer": "c"}
    more = {"answer_letter": "C", "discipline": "Science", "field": "Physics", "difficulty": "hard"}
    jsonl(root / "SuperGPQA/SuperGPQA-all.jsonl", {**row, **more})


def mmlu_redux(root: Path) -> None:
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 3}
    rows = [{**row, "error_type": "ok"}, {**row, "error_type": "wrong_groundtruth"}]
    parquet(root / "mmlu-redux-2.0/anatomy/test/0000.parquet", *rows)


def aime(root: Path) -> None:
    jsonl(root / "AIME2025/aime2025-I.jsonl", {"question": "Find $n$.", "answer": "70"})


def hmmt(root: Path) -> None:
    row = {"problem_idx": 1, "problem": "Find $n$.", "answer": "103", "problem_type": ["Algebra"]}
    parquet(root / "hmmt_feb_2025/data/train-0.parquet", row)


L2 = {"l2-category": "group", "l2_category": "group"}
FILES: dict[str, Callable[[Path], None]] = {
    "mmmu": mmmu,
    "mmmu_pro": mmmu_pro,
    "mathvista": mathvista,
    "mathvision": mathvision,
    "visulogic": visulogic,
    "visualpuzzles": visualpuzzles,
    "mmbench_en": mmbench("MMBench_DEV_EN_V11.tsv"),
    "mmbench_cn": mmbench("MMBench_DEV_CN_V11.tsv"),
    "realworldqa": vlmevalkit("RealWorldQA.tsv", choice(D=""), choice("2", "A", image="1")),
    "mmstar": vlmevalkit("MMStar.tsv", choice(**L2)),
    "hallusionbench": hallusion,
    "docvqa": answered("DocVQA_VAL.tsv"),
    "infovqa": answered("InfoVQA_VAL.tsv"),
    "ai2d": vlmevalkit("AI2D_TEST.tsv", choice()),
    "chartqa": answered("ChartQA_TEST.tsv", "['14']", split="human"),
    "ocrbench": ocrbench,
    "charxiv_descriptive": answered("CharXiv_descriptive_val.tsv", "Not Applicable", qid="3"),
    "charxiv_reasoning": answered("CharXiv_reasoning_val.tsv", "0.25", inst_category="3"),
    "omnidocbench_en": omnidocbench,
    "omnidocbench_zh": omnidocbench,
    "refcoco": refcoco,
    "countbench": countbench,
    "odinw13": odinw,
    "arkitscenes": omni3d("ARKitScenes_test.json"),
    "hypersim": omni3d("Hypersim_test.json"),
    "sunrgbd": omni3d("SUNRGBD_test.json"),
    "erqa": erqa,
    "vsi_bench": vsi_bench,
    "embspatial": embspatial,
    "refspatial": refspatial,
    "robospatial_home": robospatial,
    "blink": vlmevalkit("BLINK.tsv", choice(image=f"['{PICTURE}', '{OTHER}']", C="", D="")),
    "muirbench": muirbench,
    "mvbench": mvbench,
    "video_mme": video_mme,
    "mlvu": mlvu,
    "lvbench": lvbench,
    "charades_sta": charades,
    "video_mmmu": video_mmmu,
    "vstar": vlmevalkit("VStarBench.tsv", choice()),
    "hrbench_4k": vlmevalkit("hr_bench_4k.tsv", choice(cycle_category="0")),
    "hrbench_8k": vlmevalkit("hr_bench_8k.tsv", choice(cycle_category="0")),
    "screenspot_pro": screenspot_pro,
    "mmlu_pro": mmlu_pro,
    "gpqa": gpqa,
    "supergpqa": supergpqa,
    "mmlu_redux": mmlu_redux,
    "aime25": aime,
    "hmmt25": hmmt,
}


def write_all(root: Path, names: Sequence[str] = tuple(FILES)) -> None:
    for name in names:
        FILES[name](root)
