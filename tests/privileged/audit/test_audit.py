"""The audit of whole records: what it finds, what it leaves alone, and what follows."""

import json

import pytest
import yaml
from privileged_samples import raw_record

from dopd_vl.common.errors import ConfigurationError
from privileged.audit.audit import DESCRIPTIONS, SEVERITIES, AuditConfig, Tally, check_record, judge
from privileged.records.fields import Finding
from privileged.records.records import parse_record
from tests.commands import dopd_vl


def codes(**changes):
    return sorted(finding.code for finding in check_record(parse_record(raw_record(**changes))))


def boxes(*bboxes, label="7"):
    return {"boxes": [{"label": label, "bbox": list(bbox)} for bbox in bboxes]}


def test_a_sound_record_has_no_findings():
    assert codes() == []


# The image is 48 x 32.
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"privileged": boxes([4, 4, 4, 9])}, ["box_empty", "no_privilege"]),
        ({"privileged": boxes([40, 4, 90, 9])}, ["box_out_of_range"]),
        ({"privileged": boxes([0, 0, 48, 32])}, ["box_whole_image"]),
        ({"privileged": boxes([0, 0, 48, 31])}, []),  # 31/32 = 0.97 of the image
        ({"privileged": boxes([1, 1, 9, 9], [1, 1, 9, 9])}, ["box_duplicated"]),
        ({"privileged": boxes([1, 1, 9, 9], [1, 2, 9, 9])}, []),
        ({"privileged": boxes([1, 1, 9, 9], label="")}, ["box_unlabelled"]),
        ({"privileged": {"hints": ["You see a seven."]}, "answer": "seven cats"}, []),
        ({"privileged": {"hints": ["You see seven cats."]}, "answer": "seven cats"}, ["answer_in_hint"]),
        ({"privileged": {"hints": ["3 + 4 = 7"]}, "answer": "70"}, ["executed_step_in_hint"]),
        ({"privileged": {"hint_summary": "It is 70."}, "answer": "70"}, ["answer_in_hint_summary"]),
        ({"privileged": {"caption": "c", "wrong_hint": "It is 70."}, "answer": "70"}, ["answer_in_wrong_hint"]),
        ({"privileged": {"caption": "c", "hints_executed": ["So 70 = 70."]}, "answer": "70"}, []),
        ({"privileged": {"caption": "c", "final_answer": "seven"}, "answer": "7.0"}, []),
        ({"privileged": {"caption": "c", "final_answer": "8"}, "answer": "7"}, ["final_answer_differs"]),
        ({"privileged": None}, ["no_privilege"]),
    ],
)
def test_findings(changes, expected):
    assert codes(**changes) == expected


def test_every_finding_is_described():
    assert set(DESCRIPTIONS) == set(SEVERITIES)


def test_what_is_rejected_can_be_configured():
    findings = [Finding("box_out_of_range", "box 0"), Finding("no_privilege", "none")]
    assert judge(findings, AuditConfig().resolved()) == (None, findings)
    strict = AuditConfig({"box_out_of_range": "reject", "no_privilege": "ignore"}).resolved()
    assert judge(findings, strict) == ("box_out_of_range: box 0", findings[:1])


@pytest.mark.parametrize(
    ("severity", "message"),
    [
        ({"box_outofrange": "warn"}, "did you mean 'box_out_of_range'"),
        ({"box_empty": "no"}, "audit.severity.box_empty"),
    ],
)
def test_wrong_settings_name_their_key(severity, message):
    with pytest.raises(ConfigurationError, match=message):
        AuditConfig(severity).resolved()


def test_tallies_of_parts_add_up_to_the_tally_of_the_whole():
    rows = [parse_record(raw_record(id=str(number))).row() for number in range(8)]
    whole, halves, summed = Tally(), [Tally(), Tally()], Tally()
    for number, row in enumerate(rows):
        for tally in (whole, halves[number // 4]):
            tally.note(row["id"], ["box_empty", "box_empty"])
            if number % 3:
                tally.keep(row, ["none"])
            else:
                tally.reject("audit")
    for half in halves:
        summed.add(half.to_dict())
    assert summed.to_dict() == whole.to_dict()
    assert whole.records == 5
    assert whole.findings["box_empty"] == 8, "each record once"
    assert len(whole.examples["box_empty"]) == 5


def test_the_command_sets_aside_what_gives_the_answer_away_in_any_script(tmp_path):
    from test_leaks import LEAKS, NO_LEAKS

    def foreign(case):
        return not "".join(case).isascii() and "\\" not in case[0]

    leaks, fine = (list(filter(foreign, cases)) for cases in (LEAKS, NO_LEAKS))
    assert min(len(leaks), len(fine)) >= 5
    rows = [
        {"id": f"{kind}-{number}", "prompt": prompt, "answer": answer, "privileged": {"hints": [hint]}}
        for kind, cases in (("leak", leaks), ("fine", fine))
        for number, (answer, hint, prompt) in enumerate(cases)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = {
        "source": {"kind": "jsonl", "options": {"path": str(tmp_path / "rows.jsonl")}, "default_task": "exact"},
        "output": str(tmp_path / "out"),
        "max_rejected_share": 1.0,
        "audit": {"severity": {"duplicate_record": "ignore"}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = dopd_vl("prepare", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries] == [row["id"] for row in rows if row["id"].startswith("leak")]
    assert all("answer_in_hint" in entry["reason"] for entry in entries)
