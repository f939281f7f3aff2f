import pytest

from batchgen.errors import JobError
from batchgen.segment.glossary import Glossary, missing


@pytest.fixture
def load(tmp_path):
    def loaded(text):
        path = tmp_path / "terms.tsv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Glossary.load(str(path))

    return loaded


def test_terms_that_occur_are_given_in_their_order_and_once(load):
    glossary = load("server\tサーバー\nclient\tクライアント\nmouse\tマウス\n")
    assert glossary.terms("A client asks the server, the client waits.") == [
        ("client", "クライアント"),
        ("server", "サーバー"),
    ]


def test_comments_empty_lines_a_bom_and_crlf_are_read(load):
    glossary = load(b"\xef\xbb\xbfcat\t\xe7\x8c\xab\tan animal\r\n# dog\t-\r\n\r\ncow\t\xe7\x89\x9b")
    assert glossary.terms("cat dog cow") == [("cat", "猫"), ("cow", "牛")]


@pytest.mark.parametrize(
    "text, said",
    [
        ("a\tb\nonly\n", ":2: has no tab"),
        ("a\t\n", ":1: the target is empty"),
        ("a\t | \n", ":1: the target is empty"),
        ("\tb\n", ":1: the source is empty"),
        (b"a\tb\n\xff\tc\n", ":2: is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(load, text, said):
    with pytest.raises(JobError, match=f"glossary: .*terms.tsv{said}"):
        load(text)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(JobError, match=r"glossary: .*none\.tsv: No such file"):
        Glossary.load(str(tmp_path / "none.tsv"))


def test_of_repeated_terms_the_first_counts_and_one_line_says_so(load):
    glossary = load("cat\t猫\nCat\tネコ\ndog\t犬\ncat\tキャット\n")
    assert glossary.terms("a cat") == [("cat", "猫")]
    assert glossary.repeated.endswith("2 lines repeat an earlier term, which counts; see line 2, 'Cat'")
    assert load("cat\t猫\n").repeated == ""


def test_words_are_found_whole(load):
    assert load("cat\t猫\nC++\tC++言語\n").terms("A catalog, concat, C") == []
    assert load("cat\t猫\nC++\tC++言語\n").terms("(cat), C++.") == [("cat", "猫"), ("C++", "C++言語")]


@pytest.mark.parametrize("text", ["このサーバーは", "서버를", "GPUを使う", "ＧＰＵです"])
def test_terms_are_found_in_text_without_spaces(load, text):
    assert len(load("サーバー\tserver\n서버\tserver\nGPU\tGPU\n").terms(text)) == 1


def test_a_word_inside_of_a_word_is_none_in_japanese_text_either(load):
    assert load("AI\t人工知能\n").terms("MAIDと") == []


@pytest.mark.parametrize(
    "text, found", [("A CAT", 1), ("tell us", 0), ("in the US", 1), ("an IPHONE", 0), ("my iPhone", 1)]
)
def test_case_matters_where_a_word_has_capitals_inside(load, text, found):
    assert len(load("cat\t猫\nUS\t米国\niPhone\tiPhone\n").terms(text)) == found


def test_the_same_letters_may_be_two_terms(load):
    glossary = load("us\t私たち\nUS\t米国\n")
    assert glossary.terms("US") == [("US", "米国")]
    assert glossary.terms("us") == [("us", "私たち")]


def test_the_longest_term_is_taken(load):
    glossary = load(
        "machine\t機械\nmachine learning\t機械学習\nlearning rate\t学習率\n機械\tmachine\n機械学習\tmachine learning\n"
    )
    assert glossary.terms("machine  learning rate, machine") == [("machine learning", "機械学習"), ("machine", "機械")]
    assert glossary.terms("機械学習と機械") == [("機械学習", "machine learning"), ("機械", "machine")]


@pytest.mark.parametrize(
    "target, answer, lacks",
    [
        ("サーバー", "このサーバーは", False),
        ("サーバー", "このホストは", True),
        ("サーバー|サーバ", "サーバだ", False),
        ("server", "Two Servers", False),
        ("AI", "He said", True),
        ("AI", "said AI", False),
        ("GPU", "ＧＰＵを", False),
        ("machine learning", "machine\nlearning", False),
    ],
)
def test_missing_targets_are_told(target, answer, lacks):
    assert missing([("x", target)], answer) == ([target] if lacks else [])
