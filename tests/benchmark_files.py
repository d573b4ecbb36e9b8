"""Small files in the form of the public benchmarks' official ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.clips import numbered, write_clip

RATE = 2
"""Frames per second of the videos."""
OPTIONS = ["A. A red cup.", "B. A blue cup.", "C. A green cup.", "D. No cup."]

OVO_CHOICE = {
    "id": 7,
    "task": "EPM",
    "video": "Ego4D/one.mp4",
    "realtime": 3.5,
    "question": "Where was the cup?",
    "answer": "on the table",
    "options": ["on the floor", "on the table", "in the sink"],
    "gt": 1,
}
OVO_COUNT = {
    "id": 8,
    "task": "REC",
    "video": "two.mp4",
    "activity": "open a door",
    "start_times": [0],
    "end_times": [2],
    "test_info": [{"realtime": 2, "count": 0}, {"realtime": 4.0, "count": 12}],
}
OVO_STEP = {
    "id": 9,
    "task": "SSR",
    "video": "two.mp4",
    "tutorial": "Tea",
    "all_steps": ["boil water", "pour it"],
    "start_time": [0, 2],
    "end_time": [1, 3],
    "test_info": [
        {"realtime": 1, "step": "boil water", "type": 1},
        {"realtime": 2, "step": "pour it", "type": 0},
    ],
}
OVO_CLUE = {
    "id": 10,
    "task": "CRR",
    "video": "two.mp4",
    "question": "What does he do with the cup?",
    "answer": "He washes it.",
    "ask_time": 1,
    "clue_time": 3,
    "test_info": [{"realtime": 1, "type": 0}, {"realtime": 4, "type": 1}],
}
OVO = [OVO_CHOICE, OVO_COUNT, OVO_STEP, OVO_CLUE]

REAL = [
    {
        "time": "[0:00:00 - 0:00:10]",
        "questions": [
            {
                "task_type": "Object Recognition",
                "question": "What is on the table right now?",
                "time_stamp": "00:00:02",
                "answer": "B",
                "options": OPTIONS,
                "required_ability": "working memory",
            },
            {
                "task_type": "Counting",
                "question": "How many cups?",
                "time_stamp": "0:03",
                "answer": "A",
                "options": ["1.", "2.", "3.", "4."],
                "required_ability": "working memory",
            },
        ],
        "video_categories": "kitchen",
        "video_path": "./videos/sample_3_real.mp4",
    }
]
SEQUENCE = [
    [
        {
            "time": "[0:00:00 - 0:00:02]",
            "questions": [
                {
                    "task_type": "Sequential Question Answering",
                    "question": f"Question {number}?",
                    "time_stamp": f"00:00:0{number}",
                    "answer": "D",
                    "options": OPTIONS,
                    "required_ability": "episodic memory",
                }
            ],
            "video_categories": "kitchen",
            "video_path": "./videos/sample_1_sqa.mp4",
        }
        for number in (1, 2, 3)
    ]
]
PROACTIVE = [
    {
        "time": "[0:00:00 - 0:00:30]",
        "questions": [
            {
                "task_type": "Proactive Output",
                "question": 'When the cup is full, output "full".',
                "time_stamp": "00:00:01",
                "ground_truth_time_stamp": "00:00:03",
                "ground_truth_output": "full",
                "required_ability": "working memory",
            }
        ],
        "video_categories": "kitchen",
        "video_path": "videos/sample_1_proactive.mp4",
    }
]
OMNI = [{"questions": [{"task_type": "Scene Understanding"}], "video_path": "./videos/o.mp4"}]

EGOSCHEMA = [
    {
        "video_id": name,
        "video_path": f"videos/{name}.mp4",
        "duration": 180.0,
        "conversations": [
            {
                "question_idx": "1",
                "question": "What does c do?",
                "choices": ["sings", "cooks", "reads", "sleeps", "walks"],
                "answer": answer,
            }
        ],
    }
    for name, answer in (("one", 2), ("two", 4))
]
MLVU = [
    {
        "video_id": "movie_1",
        "video_path": "data/mlvu/videos/1_plotQA/movie_1.mp4",
        "duration": 8,
        "conversations": [
            {
                "question": "What colour is the cup?",
                "choices": ["Red", "Blue"],
                "answer": "Blue",
                "question_type": "plotQA",
            },
            {
                "question": "And the table?",
                "choices": ["Red", "Blue"],
                "answer": "Red",
                "question_type": "plotQA",
            },
        ],
    },
    {
        "video_id": "order_1",
        "video_path": "data/mlvu/videos/5_order/order_1.mp4",
        "duration": 8,
        "conversations": [
            {
                "question": "In which order?",
                "choices": ["1->2", "2->1"],
                "answer": "2->1",
                "question_type": "order",
            }
        ],
    },
]
MLVU_OFFICIAL = [
    {
        "video": "ego_1.mp4",
        "duration": 8,
        "question": "Where is the cup?",
        "candidates": ["here", "there"],
        "answer": "there",
        "question_type": "ego",
    }
]
VIDEO_MME = [
    {
        "video_id": "001",
        "duration": duration,
        "video_path": f"data/{name}.mp4",
        "conversations": [{"question": "What is shown?", "choices": OPTIONS, "answer": "C"}],
    }
    for duration, name in (("short", "abc"), ("short", "abc"), ("long", "def"))
]
VIDEO_MME_ROW = {
    "video_id": "001",
    "duration": "medium",
    "domain": "Knowledge",
    "sub_category": "Kitchen",
    "url": "",
    "videoID": "abc",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "How many cups?",
    "options": OPTIONS,
    "answer": "D",
}

CSV_COLUMNS = [
    *("question_id", "task_type", "question", "time_stamp", "answer", "options"),
    *("frames_required", "temporal_clue_type"),
]
CSV_ROW = {
    "question_id": "Real-Time Visual Understanding_sample_40_3",
    "task_type": "Object Perception",
    "question": "What is it,\nright now?",
    "time_stamp": "00:08:01",
    "answer": "C",
    "options": str(OPTIONS),
    "frames_required": "single",
    "temporal_clue_type": "Concurrent",
}


def write_json(path: Path, value: Any) -> Path:
    """`path` holds `value`, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """`path` holds `rows` under StreamingBench's columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def clip(path: Path, seconds: int = 6) -> Path:
    """A video at `path`, of a picture each half second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, (numbered(n % 22) for n in range(seconds * RATE)), rate=RATE)


def write_ovo(data: Path) -> Path:
    """`data` holds OVO-Bench: a whole video, a chunk, and one that is missing."""
    gone = OVO_CLUE | {"video": "gone.mp4"}
    write_json(data / "ovo_bench_new.json", [OVO_CHOICE, OVO_COUNT, gone])
    clip(data / "src_videos" / "Ego4D" / "one.mp4")
    clip(data / "src_videos" / "two.mp4")
    clip(data / "chunked_videos" / "8_1.mp4", seconds=3)
    return data
