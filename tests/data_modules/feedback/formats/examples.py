"""One record of each format, in the structure of its public files."""

OPENAI = {
    "messages": [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "what is this ?"}, {"type": "image_url", "image_url": {}}],
        },
        {"role": "assistant", "content": "a fiber ."},
        {"role": "user", "content": "sure ?", "name": "bob"},
        {"role": "assistant", "content": "yes ."},
    ]
}
OPENAI_PREFERENCE = {
    "input": {"messages": [{"role": "user", "content": "hi"}], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": "hello"}],
    "non_preferred_output": [{"role": "assistant", "content": "what"}],
}
TRL = {"prompt": "the sky is", "chosen": " blue.", "rejected": " green."}
HH = {
    "chosen": "\n\nHuman: is kale high ?\n\nAssistant: yes .\n\nHuman: source ?\n\nAssistant: the label .",
    "rejected": "\n\nHuman: is kale high ?\n\nAssistant: yes .\n\nHuman: source ?\n\nAssistant: no .",
}


def completion(text, score, rating, critique, model):
    aspect = {"Rating": rating, "Rationale": "why"}
    return {
        "annotations": {"helpfulness": aspect | {"Type": ["1"]}, "honesty": aspect},
        "critique": critique,
        "custom_system_prompt": "be kind",
        "fine-grained_score": float(rating),
        "model": model,
        "overall_score": score,
        "principle": "helpfulness",
        "response": text,
    }


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "name a fiber",
    "models": ["alpaca-7b", "gpt-4"],
    "completions": [
        completion("kale", 7.5, "4", "good", "alpaca-7b"),
        completion("sand", 10.0, "1", "bad", "gpt-4"),
        completion(" ", 5.0, "3", "empty", "ultralm-13b"),
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
ULTRAFEEDBACK_BINARIZED = {
    "prompt": "name a fiber",
    "prompt_id": "f0e37e9f",
    "chosen": [{"content": "name a fiber", "role": "user"}, {"content": "kale", "role": "assistant"}],
    "rejected": [{"content": "name a fiber", "role": "user"}, {"content": "sand", "role": "assistant"}],
    "messages": [{"content": "name a fiber", "role": "user"}, {"content": "kale", "role": "assistant"}],
    "score_chosen": 8.5,
    "score_rejected": 3.0,
}
LMSYS = {
    "question_id": "58210e39",
    "model_a": "alpaca-13b",
    "model_b": "koala-13b",
    "winner": "model_b",
    "judge": "arena_user_973",
    "conversation_a": [{"content": "hi", "role": "user"}, {"content": "yo", "role": "assistant"}],
    "conversation_b": [{"content": "hi", "role": "user"}, {"content": "hello", "role": "assistant"}],
    "turn": 1,
    "anony": True,
    "language": "English",
    "tstamp": 1682351591.1,
}
KAGGLE = {
    "id": "30192",
    "model_a": "gpt-4",
    "model_b": "koala-13b",
    "prompt": '["hi"]',
    "response_a": '["yo"]',
    "response_b": '["hello"]',
    "winner_model_a": "0",
    "winner_model_b": "0",
    "winner_tie": "1",
}
ARGILLA = {
    "id": "rec-7",
    "fields": {"prompt": "name a fiber", "response1": "kale", "response2": "sand"},
    "metadata": {"topic": "food"},
    "suggestions": {"preference": {"value": ["response2"], "score": None, "agent": "gpt-4"}},
    "responses": {
        "preference": [{"value": ["response2", "response1"], "user_id": "ana"}],
        "rating-1": [{"value": 5, "user_id": "ana"}, {"value": 4, "user_id": "ben"}],
        "correction": [{"value": "kale has 4 g", "user_id": "ben"}],
        "feedback-2": [{"value": "no food", "user_id": "ben"}],
    },
    "vectors": {},
    "status": "completed",
}
ARGILLA_1 = {
    "prompt": "name a fiber",
    "response-1": "kale",
    "response-2": "sand",
    "response-3": "rock",
    "ranking": [
        {
            "user_id": "u1",
            "value": {"rank": [2, 1, 2], "value": ["response-1", "response-2", "response-3"]},
            "status": "submitted",
        },
        {"user_id": "u2", "value": {"rank": [1, 2, 2], "value": []}, "status": "discarded"},
    ],
    "external_id": "x3",
    "metadata": "{}",
}
ARGILLA_FLAT = {
    "id": "rec-8",
    "status": "completed",
    "prompt": "name a fiber",
    "response": "sand",
    "quality.responses": [2],
    "quality.responses.users": ["ana"],
    "quality.responses.status": ["submitted"],
    "critique.responses": ["no food", "draft"],
    "critique.responses.users": ["ana", "ben"],
    "critique.responses.status": ["submitted", "draft"],
}


def result(name, to_name, kind, **value):
    return {"from_name": name, "to_name": to_name, "type": kind, "value": value, "id": "x", "origin": "manual"}


LABELSTUDIO = {
    "id": 41,
    "data": {"prompt": "name a fiber", "response": "😀 kale is bad"},
    "annotations": [
        {
            "id": 1001,
            "completed_by": 10,
            "result": [
                result("stars", "resp", "rating", rating=4),
                # "kale" has the character offsets 2 to 6, and therefore the UTF-16 offsets 3 to 7
                result("label", "resp", "labels", start=3, end=7, text="kale", labels=["Wrong"]),
                result("comment", "resp", "textarea", text=["too short"]),
                result("correction", "resp", "textarea", text=["kale has 4 g"]),
                result("kind", "resp", "choices", choices=["food"]),
            ],
            "was_cancelled": False,
        },
        {"id": 1002, "completed_by": {"id": 11, "email": "b@c.d"}, "result": [], "was_cancelled": True},
    ],
    "predictions": [],
    "project": 83,
}
LABELSTUDIO_RANKER = {
    "id": 42,
    "data": {
        "prompt": "name a fiber",
        "items": [{"id": "m1", "title": "M1", "body": "sand"}, {"id": "m2", "title": "M2", "body": "kale"}],
    },
    "annotations": [
        {"completed_by": 10, "result": [result("rank", "results", "ranker", ranker={"rank": ["m2", "m1"]})]}
    ],
}
LABELSTUDIO_PAIRWISE = {
    "id": 43,
    "data": {"prompt": "name a fiber", "answer1": "sand", "answer2": "kale", "answer3": "rock"},
    "annotations": [
        {
            "completed_by": 10,
            "result": [
                result("pw1", "answer1,answer2", "pairwise", selected="right"),
                result("pw2", "answer1,answer3", "pairwise", selected="left"),
            ],
        }
    ],
}
SLF5K = {
    "id": "t3_3qhwor",
    "subreddit": "relationships",
    "title": "cat gone",
    "post": "the cat ran away",
    "tldr_human_reference_summary": "cat left",
    "generated_summary_for_comparison_A": "a cat",
    "generated_summary_for_comparison_B": "the cat ran",
    "generated_summary_for_feedback": "a dog ran",
    "comparison_preference": "Summary B",
    "feedback": "it was a cat",
    "feedback_class": "Factuality",
    "ideal_human_summary": "my cat ran away",
    "has_additional_feedback": False,
}
QA_FEEDBACK = {
    "question": "where ?",
    "passages": [["LA", "a city .", "it is big ."], ["Bonn", "a town ."]],
    "gold": "in LA",
    "prediction 1": "in Bonn in Bonn",
    "prediction 2": "in LA",
    "prediction 3": "there",
    "prediction 4": "here",
    "feedback": {
        "errors": [
            {
                "error type": "Wrong-Grounding",
                "explanation": '{"passage_id":1,"sentence_id":[1,2]}',
                "start": 0,
                "end": 7,
            },
            {"error type": "Redundant", "explanation": "in Bonn ", "start": 7, "end": 15},
            {"error type": "Unverifiable", "explanation": "2009", "start": 3, "end": 7},
        ],
        "missing-info": [{"error type": "Missing-Answer", "passage_id": 2, "sentence_id": [0]}],
        "corrected-prediction": "in LA .",
    },
    "preference": [2, 0, 0, 1, 1, 0],
}
EXAMPLES = [
    ("openai", OPENAI),
    ("openai", OPENAI_PREFERENCE),
    ("trl", TRL),
    ("hh", HH),
    ("ultrafeedback", ULTRAFEEDBACK),
    ("ultrafeedback", ULTRAFEEDBACK_BINARIZED),
    ("lmsys", LMSYS),
    ("lmsys", KAGGLE),
    ("argilla", ARGILLA),
    ("argilla", ARGILLA_1),
    ("argilla", ARGILLA_FLAT),
    ("labelstudio", LABELSTUDIO),
    ("labelstudio", LABELSTUDIO_RANKER),
    ("labelstudio", LABELSTUDIO_PAIRWISE),
    ("slf5k", SLF5K),
    ("qa_feedback", QA_FEEDBACK),
]
