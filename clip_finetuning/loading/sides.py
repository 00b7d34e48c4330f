"""Which captions name a side, left or right: on a mirrored picture it is the other one.

A guess by words, in some thirty languages: "right" is counted in "just right" too, while what means "straight" at least as
often (French droit, Romanian drept) or something else ("sol", the sun) is counted only where a side is meant by all around it.
"""

import itertools
import re
from typing import NamedTuple

from clip_finetuning.loading.sample import USUAL, Fields, parse_sample
from clip_finetuning.loading.shard_list import expand_pattern
from clip_finetuning.loading.stream_reader import shard_samples
from clip_finetuning.runtime.text import printable

LOOKED_AT, MOST_SHARDS = 1000, 20  # samples, and shards that they come from, evenly spread
EXAMPLES, LONGEST = 2, 60  # captions that are named, and characters of each

# Whole words, by language; of those that are inflected, the beginning and "*".
WORDS = """
    left right leftmost rightmost leftward* rightward* lefthand righthand
    linke linken linker linkes linkem links linksseitig* rechte rechten rechter rechtes rechtem rechts rechtsseitig*
    linkerzijde rechterzijde linkerkant rechterkant linkerborst rechterborst linkermouw rechtermouw
    gauche gauches
    izquierda izquierdas izquierdo izquierdos derecha derechas derecho derechos
    esquerda esquerdas esquerdo esquerdos direita direitas direito direitos esquerra esquerre
    sinistra sinistre sinistro sinistri destra destre destro destri
    vänster vänstra höger högra venstre højre høyre høgre vinstri hægri
    vasen vasemm* vasempa* oikea oikean oikealla oikealle oikeanpuol* vasak* parem paremal
    lewa lewą lewe lewego lewej lewy lewym prawa prawą prawe prawego prawej prawy prawym
    levá levé levém levou levý vlevo doleva pravá pravé pravém pravou pravý vpravo doprava ľav* vľavo pravá
    lijev* desno desna desni desnoj lijevo levo leva levi levoj kairė* kairys* dešin* kreis* labaj* labā
    stânga stângă stâng dreapta dreaptă baloldal* jobboldal* balról jobbról
    левый левая левое левой левого левом левую левые левых слева влево налево правый правая правое правой правого правом
    правую правые правых справа вправо направо лівий ліва ліве лівій лівого лівому ліву зліва ліворуч правий праве правій
    правому праворуч ляв* вляво дясн* вдясно десен десния
    αριστερ* δεξι* kiri kanan sağ sağda sağa solda
"""
PHRASES = r"""
    (?:à|de|sur\ la|vers\ la)\ droite | côté\ droit | (?:main|poche|épaule|poitrine|cuisse|oreille|page)\ droite
    | (?:partea|mâna|mana)\ dreapt[aă] | (?:bal|jobb)\ (?:oldal|kéz|mell|váll)\w* | sol\ (?:taraf|göğüs|göğs|kol|cep|el|omuz|yan)\w*
    | bên\ (?:trái|phải) | phía\ (?:trái|phải) | tay\ (?:trái|phải)
"""
# Scripts that write words without blanks, or whose vowels are no letters to `re`. Both sides at once are none.
SIGNS = r"""
    左(?!右) | (?<!左)右 | 왼 | 오른\s?(?:쪽|편|손) | 좌측 | 우측 | ซ้าย | ด้านขวา | ข้างขวา | มือขวา | बाएं | बाएँ | बाईं | बायां | बायीं | दाएं | दाएँ
    | दाईं | दायां | दाहिन | يسار | يمين | اليسرى | اليمنى | أيسر | أيمن | الأيسر | الأيمن | שמאל | ימין | ימני | چپ
"""
NO_SIDE = re.compile(r"(?:cuff|chain|golf)[ -]links|all rights?\b|rights reserved")
WORD = "|".join(re.escape(word).replace(r"\*", r"\w*") for word in sorted(set(WORDS.split())))
SIDE = re.compile(rf"\b(?:{WORD}|{PHRASES})\b|{SIGNS}".replace("\n", ""), re.IGNORECASE | re.VERBOSE)


class Found(NamedTuple):
    """What was found among so many samples."""

    samples: int
    naming: int  # of which some caption names a side
    examples: list[str]


def names_side(caption: str) -> bool:
    """Whether a caption may name a side."""
    return SIDE.search(NO_SIDE.sub(" ", caption.lower())) is not None


def look(pattern: str, fields: Fields = USUAL) -> Found:
    """How many of about `LOOKED_AT` samples of some shards, evenly spread over them, name a side. Raises FileNotFoundError."""
    shards = expand_pattern(pattern)
    chosen = shards[:: -(-len(shards) // MOST_SHARDS)]
    each = -(-LOOKED_AT // len(chosen))
    samples, naming, examples = 0, 0, []
    for shard in chosen:
        for raw in itertools.islice(shard_samples(shard, lambda lost: None, fields=fields), each):
            samples += 1
            of_side = next(filter(names_side, parse_sample(raw, fields).captions), None)
            naming += of_side is not None
            if of_side is not None and len(examples) < EXAMPLES:
                examples.append(repr(printable(of_side[:LONGEST])))
    return Found(samples, naming, examples)
