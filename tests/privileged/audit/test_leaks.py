"""The audit of hints. Each case is a sentence that an annotator could write."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privileged.audit.leaks import answer_leaks, clean, executed_step, number_of, same_answer

LEAKS = [
    ("12", "The total is 12.", "What is 5 + 7?"),
    ("12", "You end with twelve.", "What is 5 + 7?"),
    ("1250", "That makes 1,250 in all.", "Five times 250?"),
    ("1,250", "About 1250.0 of them.", "Five times 250?"),
    ("21", "There are twenty-one of them.", "Count."),
    ("105", "One hundred and five.", "Count."),
    ("3/4", "The share is 0.75.", "Which share is red?"),
    ("-14", "It drops to −14 degrees.", "How cold?"),
    (r"\boxed{42}", "We find $42$.", "Solve."),
    ("42", r"So the number is \boxed{42}.", "Solve."),
    ("7", "The answer is 7.", "How many?"),
    ("7", "Therefore the answer is: **7**", "How many?"),
    ("7", "3 + 4 = 7", "Add 3 and 4."),
    ("7", "Adding them gives 7.", "Add."),
    ("7", "The total comes to seven.", "Add."),
    ("7", "c = 7", "a = 3; c = a + 4. What is c?"),
    ("24", "The answer is 24.", "Is 24 the product?"),
    ("33", "That gives 33.", "Rice weighing 33 / 4 pounds is put into 4 boxes. How many ounces are in each?"),
    ("B", "The answer is B.", "Pick one: (A) red (B) blue"),
    ("B", "Choose (B).", "Pick one: (A) red (B) blue"),
    ("b", "Option B is correct.", "Pick one: (A) red (B) blue"),
    ("(B)", "So the correct option is (B).", "Pick one: (A) red (B) blue"),
    ("A", "Pick option A.", "Pick one: (A) red (B) blue"),
    ("Paris", "The capital is Paris; say so.", "What is France's capital?"),
    ("photosynthesis", "Think of Photosynthesis.", "How do plants eat?"),
    ("left", "The answer is left.", "Left, right or equal?"),
    ("yes", "So the answer is yes.", "Is it red?"),
    ("42 km/h", "Distance over time comes to 42 km/h here.", "How fast?"),
    ("66 cm^2", "You end up with 66 square centimetres.", "Which area?"),
    ("3:2", "What is left is 3:2.", "Which ratio?"),
    ("C++", "Stroustrup called it C++, after the operator.", "Which language?"),
    ("7", "Double two, add three; so there are seven of them.", "How many?"),
    ("5", "Count those: only five remain.", "How many remain?"),
    ("3", "You see that n has to be 3.", "Find n."),
    ("no", "No, a wall lets no light through.", "Can it?"),
    ("false", "Try 3 + 5: the statement is false.", "True or false?"),
    ("ein Buch", "Dort liegt ein dickes Buch.", "Was liegt dort?"),
    ("4", "答案是4。", "每人几颗？"),
    ("28米", "所以周长就是28米。", "周长是多少？"),
    ("长江", "它全长六千多公里，就是长江。", "最长的河流是哪一条？"),
    ("对", "答案：对", "对还是错？"),
    ("富士山", "静岡県にまたがる富士山がその山です。", "一番高い山は？"),
    ("8", "答えは8です。", "残りはいくつ？"),
    ("1500원", "모두 1500원을 내야 합니다.", "얼마입니까?"),
    ("서울", "한강이 흐르는 서울이 바로 그 도시입니다.", "수도는 어디입니까?"),
    ("5", "정답은 5입니다.", "몇 개?"),
    ("กรุงเทพมหานคร", "เมืองหลวงคือกรุงเทพมหานครนั่นเอง", "เมืองใด"),
    ("7", "คำตอบคือ 7", "เหลือกี่ฟอง"),
    ("C", "答案是C。", "A 红 B 蓝 C 绿"),
]  # fmt: skip

NO_LEAKS = [
    ("12", "Add the two numbers.", "What is 5 + 7?"),
    ("12", "Step 12: add.", "What is 5 + 7?"),
    ("12", "12. Add.", "What is 5 + 7?"),
    ("12", "Look at the 12th row.", "What is 5 + 7?"),
    ("12", "Use version 1.12 of 3.12.4.", "What is 5 + 7?"),
    ("12", "Note that 112 and 120 are even.", "What is 5 + 7?"),
    ("12", "Start with the 12 eggs.", "From 12 eggs, none break. How many are left?"),
    ("33", "Divide 33 by 4.", "Rice weighing 33 / 4 pounds is put into 4 boxes. How many ounces are in each?"),
    ("7", "Find the 7 objects.", "How many?"),
    ("7", "Look for the digit 7.", "How many 7s?"),
    ("3", "Take the first 3 numbers.", "What is left?"),
    ("1", "Only one step is needed.", "What is left?"),
    ("3", "Start from a = 3.", "a = 3; b = a - 0. What is b?"),
    ("7", "Solve x + y = 7 - z.", "Find x."),
    ("A", "A circle is a good start.", "(A) red (B) blue"),
    ("A", "Select a suitable colour, then compare A with B.", "(A) red (B) blue"),
    ("B", "Compare option A with option B.", "(A) red (B) blue"),
    ("I", "I would begin with option II.", "(I) red (II) blue"),
    ("equal", "Check whether the result is equal to the other.", "left, right or equal?"),
    ("left", "Read the left column first.", "left, right or equal?"),
    ("left", "Choose the left column to begin.", "left, right or equal?"),
    ("right", "What is the answer? Right after reading, add.", "left, right or equal?"),
    ("blue circle", "Is it the red square or the blue circle?", "Red square or blue circle?"),
    ("no", "There is no need to guess.", "Is it red?"),
    ("no", "No box may be left out, so count them.", "Is it red?"),
    ("true", "Ask whether the statement is true.", "True or false?"),
    ("true", "If the statement is true, it has no counterexample.", "True or false?"),
    ("true", "List what is true, then look at the rest.", "True or false?"),
    ("2", "Only two of them can be moved.", "How many?"),
    ("2", "Look at the pieces that remain: 2 by 2 they fit.", "How many?"),
    ("3:2", "Compare 13:2 with 3:25.", "Which ratio?"),
    ("C++", "C came before it.", "Which language?"),
    ("42 km/h", "Give the speed in km/h.", "How fast?"),
    ("28米", "注意单位是米，看第28题。", "周长是多少？"),
    ("4", "先想一想4个步骤。", "每人几颗？"),
    ("长江", "它发源于青藏高原，向东流。", "最长的河流是哪一条？"),
    ("正确", "想一想什么是正确的方法。", "正确还是错误？"),
    ("서울", "한강이 흐르는 도시를 생각해 보세요.", "수도는 어디입니까?"),
    ("부산", "부산과 서울을 비교해 보세요.", "부산과 서울 중 어디입니까?"),
]


@pytest.mark.parametrize(("answer", "hint", "prompt"), LEAKS)
def test_an_answer_that_is_given_away_is_found(answer, hint, prompt):
    assert answer_leaks(answer, ["Look closely.", hint], prompt) == hint


@pytest.mark.parametrize(("answer", "hint", "prompt"), NO_LEAKS)
def test_a_hint_that_gives_nothing_away_is_left_alone(answer, hint, prompt):
    assert answer_leaks(answer, [hint], prompt) is None


@pytest.mark.parametrize("hint", ["5 + 7 = 12", "b = 7", "5 plus 7 is twelve", "Then 3*4 = 12, so go on.", "$2^3=8$"])
def test_a_worked_out_step_is_found(hint):
    assert executed_step([hint], "a = 3; b = a + 4. What is 5 + 7?") == hint


@pytest.mark.parametrize(
    "hint", ["Add 5 and 7.", "a = 3 is given.", "Compute b = a + 4.", "Check x <= 5.", "The 2 are 3 cells apart."]
)
def test_a_step_that_is_only_described_is_left_alone(hint):
    assert executed_step([hint], "a = 3; b = a + 4. What is 5 + 7?") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,250", "1250"), ("3/4", "0.75"), ("12.50", "12.5"), ("twelve", "12"), ("45 %", "45"), ("2 apples", None),
        ("two thousand and six", "2006"), ("seven eight", None), ("1/0", None), ("", None), ("1,2", None),
        ("three million", "3000000"),
    ],
)  # fmt: skip
def test_numbers_are_read_however_they_are_written(text, value):
    found = number_of(text)
    assert (found is None) if value is None else (found is not None and str(found.normalize().__format__("f")) == value)


def test_cleaning_twice_changes_nothing():
    text = r"\boxed{\text{one hundred}} − $5{,}000$"
    assert clean(clean(text)) == clean(text) == "100 - 5,000"


WORDS = st.sampled_from(
    [
        "answer", "is", "=", "7", "-12", "3/4", "1,250", "twenty", "one", "million", "hundred", "and", "option", "(B)",
        "the", "choose", "}", "$", "left", ".", "x", "/0", "%", "\u0661", "\\boxed{", "1" * 5000,
    ]
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(WORDS, max_size=12).map(" ".join), st.lists(WORDS, max_size=12).map(" ".join), st.text(max_size=20))
def test_no_text_breaks_the_checks(answer, hint, prompt):
    for one, other in ((answer, hint), (hint, answer), (prompt, hint), (answer, prompt)):
        assert answer_leaks(one, [other], prompt) in (None, other)
        assert executed_step([other], prompt) in (None, other)
        assert same_answer(one, one)


LONG = [
    unit * (40_000 // len(unit))
    for unit in ("x", "1", "million ", "answer is the ", "\\boxed{", "= ", "twenty-", " ", "1,1", "a=")
]


@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:14].strip() or "spaces")
def test_long_texts_take_no_long_time(text):
    start = time.process_time()
    for answer in ("7", "12", "B", "left", "photosynthesis", text):
        answer_leaks(answer, [text], text)
    executed_step([text], text)
    assert time.process_time() - start < 3
