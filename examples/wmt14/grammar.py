"""The demo corpus: a small bilingual grammar that writes English sentences and their German translations.

Made for this example, so that it runs without any download. A sentence is first drawn as a structure (who does what to
whom, when, where) and then spoken in both languages, hence every pair is correct by construction and the English side
determines the German one. Translating it takes what makes German hard for a bag of words: case, gender and number in
articles, adjectives and pronouns; roles that English shows by word order alone; the finite verb in second place, at the
front of questions, at the end of subordinate clauses; participles, infinitives and separable particles at the end;
objects ordered by definiteness; negation by "nicht" or "kein".

Some choices make the map a function: "you" is "du", and the past tense is the German perfect ("war", "wurde" and modal
verbs apart). Only `Random.random()` is used, whose stream Python keeps for good.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

SHORTEST, LONGEST = 4, 20  # words of a sentence, on both sides
HELD_OUT = 20  # one in so many combinations of subject, verb and object goes to each of validation and test

# ---- lexicon ---------------------------------------------------------------------------------------------------------

# kinds | English singular, plural | German singular, gender, plural, genitive, and accusative/dative where it differs
# kinds: P person, A animal, T thing (F food, C can be opened), and places: I inside, U upon, B beside, H through, S at
NOUNS = """
P man men Mann m Männer Mannes
P woman women Frau f Frauen Frau
P child children Kind n Kinder Kindes
P girl girls Mädchen n Mädchen Mädchens
P boy boys Junge m Jungen Jungen Jungen
P teacher teachers Lehrer m Lehrer Lehrers
P doctor doctors Ärztin f Ärztinnen Ärztin
P farmer farmers Bauer m Bauern Bauern Bauern
P student students Student m Studenten Studenten Studenten
P neighbor neighbors Nachbarin f Nachbarinnen Nachbarin
P friend friends Freund m Freunde Freundes
P mother mothers Mutter f Mütter Mutter
P father fathers Vater m Väter Vaters
P sister sisters Schwester f Schwestern Schwester
P brother brothers Bruder m Brüder Bruders
P king kings König m Könige Königs
P queen queens Königin f Königinnen Königin
P baker bakers Bäcker m Bäcker Bäckers
P singer singers Sängerin f Sängerinnen Sängerin
P painter painters Maler m Maler Malers
P aunt aunts Tante f Tanten Tante
P uncle uncles Onkel m Onkel Onkels
P guest guests Gast m Gäste Gastes
P soldier soldiers Soldat m Soldaten Soldaten Soldaten
A dog dogs Hund m Hunde Hundes
A cat cats Katze f Katzen Katze
A horse horses Pferd n Pferde Pferdes
A cow cows Kuh f Kühe Kuh
A bird birds Vogel m Vögel Vogels
A mouse mice Maus f Mäuse Maus
A pig pigs Schwein n Schweine Schweins
A bear bears Bär m Bären Bären Bären
A lion lions Löwe m Löwen Löwen Löwen
A duck ducks Ente f Enten Ente
A rabbit rabbits Kaninchen n Kaninchen Kaninchens
A goat goats Ziege f Ziegen Ziege
A monkey monkeys Affe m Affen Affen Affen
A fox foxes Fuchs m Füchse Fuchses
T book books Buch n Bücher Buches
T ball balls Ball m Bälle Balles
T lamp lamps Lampe f Lampen Lampe
TC letter letters Brief m Briefe Briefes
T flower flowers Blume f Blumen Blume
T key keys Schlüssel m Schlüssel Schlüssels
T cup cups Tasse f Tassen Tasse
TF cake cakes Kuchen m Kuchen Kuchens
TF apple apples Apfel m Äpfel Apfels
TF egg eggs Ei n Eier Eies
TF pear pears Birne f Birnen Birne
TF tomato tomatoes Tomate f Tomaten Tomate
T knife knives Messer n Messer Messers
T picture pictures Bild n Bilder Bildes
T hat hats Hut m Hüte Hutes
T shirt shirts Hemd n Hemden Hemdes
T coat coats Mantel m Mäntel Mantels
TC bag bags Tasche f Taschen Tasche
T car cars Auto n Autos Autos
T chair chairs Stuhl m Stühle Stuhles
TC bottle bottles Flasche f Flaschen Flasche
T clock clocks Uhr f Uhren Uhr
T newspaper newspapers Zeitung f Zeitungen Zeitung
TC gift gifts Geschenk n Geschenke Geschenks
T boat boats Boot n Boote Bootes
T guitar guitars Gitarre f Gitarren Gitarre
TC umbrella umbrellas Regenschirm m Regenschirme Regenschirms
TC box boxes Kiste f Kisten Kiste
IB house houses Haus n Häuser Hauses
IH garden gardens Garten m Gärten Gartens
IH park parks Park m Parks Parks
IH forest forests Wald m Wälder Waldes
I kitchen kitchens Küche f Küchen Küche
IH city cities Stadt f Städte Stadt
IB school schools Schule f Schulen Schule
IB church churches Kirche f Kirchen Kirche
I room rooms Zimmer n Zimmer Zimmers
IH village villages Dorf n Dörfer Dorfes
IB castle castles Schloss n Schlösser Schlosses
IB hotel hotels Hotel n Hotels Hotels
IB shop shops Laden m Läden Ladens
IB theater theaters Theater n Theater Theaters
IB office offices Büro n Büros Büros
IB tower towers Turm m Türme Turmes
UB bridge bridges Brücke f Brücken Brücke
U table tables Tisch m Tische Tisches
U roof roofs Dach n Dächer Daches
U hill hills Hügel m Hügel Hügels
SB station stations Bahnhof m Bahnhöfe Bahnhofs
S river rivers Fluss m Flüsse Flusses
S lake lakes See m Seen Sees
S window windows Fenster n Fenster Fensters
"""

# kinds | English, comparative | German, stem before endings, comparative ("-": not compared)
ADJECTIVES = """
ATO big bigger groß groß größer
PATO small smaller klein klein kleiner
PATO old older alt alt älter
PA young younger jung jung jünger
TO new newer neu neu neuer
T red - rot rot -
T blue - blau blau -
T green - grün grün -
T yellow - gelb gelb -
AT black - schwarz schwarz -
AT white - weiß weiß -
AT brown - braun braun -
ATO beautiful more_beautiful schön schön schöner
T expensive more_expensive teuer teur teurer
T cheap cheaper billig billig billiger
PA tired more_tired müde müd müder
P happy happier glücklich glücklich glücklicher
PA sad sadder traurig traurig trauriger
PA smart smarter klug klug klüger
PA friendly friendlier freundlich freundlich freundlicher
PA hungry hungrier hungrig hungrig hungriger
PA strong stronger stark stark stärker
PAO quiet quieter ruhig ruhig ruhiger
O dark darker dunkel dunkl dunkler
TO clean cleaner sauber sauber sauberer
T heavy heavier schwer schwer schwerer
ATO dirty dirtier schmutzig schmutzig schmutziger
PA sick sicker krank krank kränker
PA healthy healthier gesund gesund gesünder
P angry angrier wütend wütend wütender
P poor poorer arm arm ärmer
P rich richer reich reich reicher
P funny funnier lustig lustig lustiger
PA lazy lazier faul faul fauler
PA brave braver mutig mutig mutiger
PO famous more_famous berühmt berühmt berühmter
TO modern more_modern modern modern moderner
"""

# frame, kinds of subject, kinds of object | English base, 3rd person, past, participle
#     | German auxiliary, infinitive, ich, du, er, participle; separable particle before "+"
# frames: i intransitive; a, d one object in that case; da both; dt both, English only with "to"; m motion;
#     am object and direction; English preposition:German preposition:case for prepositional objects
VERBS = """
i PA - | sleep sleeps slept - | haben schlafen schlafe schläfst schläft geschlafen
i P - | laugh laughs laughed - | haben lachen lache lachst lacht gelacht
i P - | sing sings sang - | haben singen singe singst singt gesungen
i P - | dance dances danced - | haben tanzen tanze tanzt tanzt getanzt
i P - | work works worked - | haben arbeiten arbeite arbeitest arbeitet gearbeitet
i PA - | swim swims swam - | sein schwimmen schwimme schwimmst schwimmt geschwommen
i P - | cry cries cried - | haben weinen weine weinst weint geweint
i P - | study studies studied - | haben lernen lerne lernst lernt gelernt
i PA - | wake_up wakes_up woke_up - | sein auf+wachen wache wachst wacht aufgewacht
i PA - | arrive arrives arrived - | sein an+kommen komme kommst kommt angekommen
i PA - | fall_asleep falls_asleep fell_asleep - | sein ein+schlafen schlafe schläfst schläft eingeschlafen
i P - | get_up gets_up got_up - | sein auf+stehen stehe stehst steht aufgestanden
a PA PATO | see sees saw seen | haben sehen sehe siehst sieht gesehen
a PA PA | hear hears heard heard | haben hören höre hörst hört gehört
a PA PATO | find finds found found | haben finden finde findest findet gefunden
a PA PAT | look_for looks_for looked_for - | haben suchen suche suchst sucht gesucht
a A PA | bite bites bit bitten | haben beißen beiße beißt beißt gebissen
a P TA | carry carries carried carried | haben tragen trage trägst trägt getragen
a P PATO | love loves loved loved | haben lieben liebe liebst liebt geliebt
a P PO | visit visits visited visited | haben besuchen besuche besuchst besucht besucht
a P P | know knows knew - | haben kennen kenne kennst kennt gekannt
a P TA | buy buys bought bought | haben kaufen kaufe kaufst kauft gekauft
a P TA | sell sells sold sold | haben verkaufen verkaufe verkaufst verkauft verkauft
a P PATO | draw draws drew drawn | haben zeichnen zeichne zeichnest zeichnet gezeichnet
a P PATO | paint paints painted painted | haben malen male malst malt gemalt
a P PAT | wash washes washed washed | haben waschen wasche wäschst wäscht gewaschen
a PA A | catch catches caught caught | haben fangen fange fängst fängt gefangen
a P P | greet greets greeted greeted | haben grüßen grüße grüßt grüßt gegrüßt
a P T | need needs needed needed | haben brauchen brauche brauchst braucht gebraucht
a P PT | forget forgets forgot forgotten | haben vergessen vergesse vergisst vergisst vergessen
a PA T | hide hides hid hidden | haben verstecken verstecke versteckst versteckt versteckt
a PA PA | protect protects protected protected | haben beschützen beschütze beschützt beschützt beschützt
a P A | feed feeds fed fed | haben füttern füttere fütterst füttert gefüttert
a P PATO | admire admires admired admired | haben bewundern bewundere bewunderst bewundert bewundert
a PA T | steal steals stole stolen | haben stehlen stehle stiehlst stiehlt gestohlen
a PA PA | watch watches watched watched | haben beobachten beobachte beobachtest beobachtet beobachtet
a P F | eat eats ate eaten | haben essen esse isst isst gegessen
a P P | call calls called called | haben an+rufen rufe rufst ruft angerufen
a P P | invite invites invited invited | haben ein+laden lade lädst lädt eingeladen
a P C | open opens opened opened | haben auf+machen mache machst macht aufgemacht
a P C | close closes closed closed | haben zu+machen mache machst macht zugemacht
a PA PA | wake wakes woke woken | haben auf+wecken wecke weckst weckt aufgeweckt
d P PA | help helps helped - | haben helfen helfe hilfst hilft geholfen
d P P | thank thanks thanked - | haben danken danke dankst dankt gedankt
d PA PA | follow follows followed - | sein folgen folge folgst folgt gefolgt
d P P | trust trusts trusted - | haben vertrauen vertraue vertraust vertraut vertraut
d P P | answer answers answered - | haben antworten antworte antwortest antwortet geantwortet
d P P | congratulate congratulates congratulated - | haben gratulieren gratuliere gratulierst gratuliert gratuliert
d TA P | belong_to belongs_to belonged_to - | haben gehören gehöre gehörst gehört gehört
d P P | listen_to listens_to listened_to - | haben zu+hören höre hörst hört zugehört
da P TA | give gives gave - | haben geben gebe gibst gibt gegeben
da P TA | show shows showed - | haben zeigen zeige zeigst zeigt gezeigt
da P T | send sends sent - | haben schicken schicke schickst schickt geschickt
da P T | bring brings brought - | haben bringen bringe bringst bringt gebracht
da P T | lend lends lent - | haben leihen leihe leihst leiht geliehen
dt P T | return returns returned - | haben zurück+geben gebe gibst gibt zurückgegeben
dt P P | introduce introduces introduced - | haben vor+stellen stelle stellst stellt vorgestellt
m PA - | go goes went - | sein gehen gehe gehst geht gegangen
m PA - | run runs ran - | sein laufen laufe läufst läuft gelaufen
m P - | drive drives drove - | sein fahren fahre fährst fährt gefahren
m PA - | come comes came - | sein kommen komme kommst kommt gekommen
m PA - | jump jumps jumped - | sein springen springe springst springt gesprungen
am P TA | carry carries carried - | haben tragen trage trägst trägt getragen
am P T | throw throws threw - | haben werfen werfe wirfst wirft geworfen
for:auf:A P PAT | wait waits waited - | haben warten warte wartest wartet gewartet
of:an:A P PAT | think thinks thought - | haben denken denke denkst denkt gedacht
with:mit:D P P | speak speaks spoke - | haben sprechen spreche sprichst spricht gesprochen
of:von:D P PAT | dream dreams dreamed - | haben träumen träume träumst träumt geträumt
about:über:A P PAT | laugh laughs laughed - | haben lachen lache lachst lacht gelacht
with:mit:D PA PAT | play plays played - | haben spielen spiele spielst spielt gespielt
with:mit:D PA PA | fight fights fought - | haben kämpfen kämpfe kämpfst kämpft gekämpft
"""

# matrix verbs: what follows | English | German
MATRIX_VERBS = """
that/dass | say says said - | haben sagen sage sagst sagt gesagt
that/dass | believe believes believed - | haben glauben glaube glaubst glaubt geglaubt
that/dass | know knows knew - | haben wissen weiß weißt weiß gewusst
that/dass | hope hopes hoped - | haben hoffen hoffe hoffst hofft gehofft
whether/ob | ask asks asked - | haben fragen frage fragst fragt gefragt
whether/ob | wonder wonders wondered - | haben überlegen überlege überlegst überlegt überlegt
to/zu | try tries tried - | haben versuchen versuche versuchst versucht versucht
to/zu | hope hopes hoped - | haben hoffen hoffe hoffst hofft gehofft
to/zu | forget forgets forgot - | haben vergessen vergesse vergisst vergisst vergessen
to/zu | promise promises promised - | haben versprechen verspreche versprichst verspricht versprochen
"""

# when | English | German
TIMES = """
any | today | heute
any | in the morning | am Morgen
any | in the evening | am Abend
any | at night | in der Nacht
any | on Monday | am Montag
any | on Sunday | am Sonntag
any | in summer | im Sommer
any | in winter | im Winter
present | now | jetzt
present | every day | jeden Tag
past | yesterday | gestern
past | last week | letzte Woche
past | two days ago | vor zwei Tagen
future | tomorrow | morgen
future | next week | nächste Woche
future | soon | bald
"""
FREQUENCIES = (("often", "oft"), ("always", "immer"), ("sometimes", "manchmal"), ("rarely", "selten"), ("never", "nie"))
MANNERS = (("quickly", "schnell"), ("slowly", "langsam"), ("quietly", "leise"), ("alone", "allein"))

# English preposition, kinds of noun, German preposition, case
PLACES = (
    ("in", "I", "in", "D"), ("on", "U", "auf", "D"), ("under", "U", "unter", "D"), ("behind", "B", "hinter", "D"),
    ("in front of", "B", "vor", "D"), ("next to", "B", "neben", "D"), ("at", "S", "an", "D"),
)  # fmt: skip
DIRECTIONS = (
    ("into", "I", "in", "A"), ("out of", "I", "aus", "D"), ("through", "H", "durch", "A"), ("to", "BS", "zu", "D"),
    ("onto", "U", "auf", "A"),
)  # fmt: skip
CONTRACTIONS = {
    "in dem": "im", "in das": "ins", "an dem": "am", "von dem": "vom", "zu dem": "zum", "zu der": "zur",
}  # fmt: skip

ARTICLES = {  # "der" by gender (p: plural) in the cases N, A, D, G
    "m": ("der", "den", "dem", "des"), "f": ("die", "die", "der", "der"),
    "n": ("das", "das", "dem", "des"), "p": ("die", "die", "den", "der"),
}  # fmt: skip
RELATIVES = {
    "m": ("der", "den", "dem"), "f": ("die", "die", "der"), "n": ("das", "das", "dem"), "p": ("die", "die", "denen"),
}  # fmt: skip
# endings in the cases N, A, D, G: of determiners, then of the adjectives behind them
FULL_ENDINGS = {"m": ("er", "en", "em", "es"), "f": ("e", "e", "er", "er"), "n": ("es", "es", "em", "es"),
                "p": ("e", "e", "en", "er")}  # fmt: skip
EIN_ENDINGS = {"m": ("", "en", "em", "es"), "f": ("e", "e", "er", "er"), "n": ("", "", "em", "es"),
               "p": ("e", "e", "en", "er")}  # fmt: skip
MANY_ENDINGS = {"p": ("e", "e", "en", "er")}
NO_ENDINGS = {"p": ("", "", "", "")}
WEAK = {"m": ("e", "en", "en", "en"), "f": ("e", "e", "en", "en"), "n": ("e", "e", "en", "en"), "p": ("en",) * 4}
MIXED = {"m": ("er", "en", "en", "en"), "f": ("e", "e", "en", "en"), "n": ("es", "es", "en", "en"), "p": ("en",) * 4}
STRONG = {"p": ("e", "e", "en", "er")}

# Persons: 1s I, 2s you, 3s he, 1p we, 3p they. Finite German forms of auxiliaries by person:
PERSONS = ("1s", "2s", "3s", "1p", "3p")
FINITE = {
    name: dict(zip(PERSONS, forms.split(), strict=True))
    for name, forms in {
        "haben": "habe hast hat haben haben",
        "sein": "bin bist ist sind sind",
        "war": "war warst war waren waren",
        "will": "werde wirst wird werden werden",
        "wurde": "wurde wurdest wurde wurden wurden",
        "can": "kann kannst kann können können",
        "could": "konnte konntest konnte konnten konnten",
        "must": "muss musst muss müssen müssen",
        "had to": "musste musstest musste mussten mussten",
        "want to": "will willst will wollen wollen",
        "wanted to": "wollte wolltest wollte wollten wollten",
        "should": "soll sollst soll sollen sollen",
        "may": "darf darfst darf dürfen dürfen",
    }.items()
}
BE_PRESENT = dict(zip(PERSONS, ("am", "are", "is", "are", "are"), strict=True))
BE_PAST = dict(zip(PERSONS, ("was", "were", "was", "were", "were"), strict=True))

# Tense, weight, which times go with it. "must not" and "had not to" mean something else than in German.
TENSES = (
    ("present", 32, "present"), ("past", 26, "past"), ("will", 10, "future"), ("can", 8, "future"),
    ("could", 3, "past"), ("must", 6, "future"), ("had to", 3, "past"), ("want to", 5, "future"),
    ("wanted to", 2, "past"), ("should", 3, "future"), ("may", 2, "future"),
)  # fmt: skip
TIME_CLASS = {tense: times for tense, _, times in TENSES}
NOT_NEGATED = ("must", "had to")


@dataclass(frozen=True)
class Noun:
    kinds: str
    en: str
    en_plural: str
    de: str
    gender: str
    de_plural: str
    genitive: str
    oblique: str

    @property
    def kind(self) -> str:
        """P, A, T or O: what an adjective must suit."""
        return self.kinds[0] if self.kinds[0] in "PAT" else "O"

    def german(self, case: str, plural: bool) -> str:
        if plural:
            return self.de_plural + ("n" if case == "D" and self.de_plural[-1] not in "ns" else "")
        return {"N": self.de, "G": self.genitive}.get(case, self.oblique)


@dataclass(frozen=True)
class Adjective:
    kinds: str
    en: str
    en_more: str
    de: str
    stem: str
    de_more: str


@dataclass(frozen=True)
class Verb:
    frame: str
    subjects: str
    objects: str
    base: str
    third: str
    past: str
    participle: str  # of English; "" where the verb has no passive here
    auxiliary: str
    particle: str
    infinitive: str  # without the particle
    forms: dict[str, str] = field(hash=False)
    de_participle: str

    @property
    def full_infinitive(self) -> str:
        return self.particle + self.infinitive

    @property
    def zu_infinitive(self) -> list[str]:
        return [f"{self.particle}zu{self.infinitive}"] if self.particle else ["zu", self.infinitive]


def _rows(table: str) -> list[list[str]]:
    return [line.replace("|", " ").split() for line in table.strip().split("\n")]


def _noun(kinds, en, en_plural, de, gender, de_plural, genitive, oblique=None) -> Noun:
    return Noun(kinds, en, en_plural, de, gender, de_plural, genitive, oblique or de)


def _verb(frame, subjects, objects, base, third, past, participle, auxiliary, infinitive, ich, du, er, ge) -> Verb:
    particle, _, infinitive = infinitive.rpartition("+")
    forms = dict(zip(PERSONS, (ich, du, er, infinitive, infinitive), strict=True))
    english = [word.replace("_", " ") for word in (base, third, past, participle.strip("-"))]
    return Verb(frame, subjects, objects, *english, auxiliary, particle, infinitive, forms, ge)


LEXICON = [_noun(*row) for row in _rows(NOUNS)]
ADJECTIVE_LIST = [Adjective(*(word.replace("_", " ") for word in row)) for row in _rows(ADJECTIVES)]
VERB_LIST = [_verb(*row) for row in _rows(VERBS)]
MATRIX_LIST = [_verb(row[0], "P", "-", *row[1:]) for row in _rows(MATRIX_VERBS)]
TIME_LIST = [tuple(part.strip() for part in line.split("|")) for line in TIMES.strip().split("\n")]
BE = Verb("be", "PATO", "-", "be", "is", "was", "", "sein", "", "sein", FINITE["sein"], "gewesen")

# ---- noun phrases ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Determiner:
    en: str
    de: str  # stem
    endings: dict[str, tuple[str, ...]] = field(hash=False)
    adjective_endings: dict[str, tuple[str, ...]] = field(hash=False)
    definite: bool

    def german(self, gender: str, case: str) -> str:
        if self.de == "der":
            return ARTICLES[gender]["NADG".index(case)]
        return self.de + self.endings[gender]["NADG".index(case)]


THE = Determiner("the", "der", {}, WEAK, True)
A = Determiner("a", "ein", EIN_ENDINGS, MIXED, False)
NO = Determiner("no", "kein", EIN_ENDINGS, MIXED, False)
BARE = Determiner("", "", NO_ENDINGS, STRONG, False)
POSSESSIVES = [
    Determiner(en, de, EIN_ENDINGS, MIXED, True)
    for en, de in (("my", "mein"), ("your", "dein"), ("his", "sein"), ("her", "ihr"), ("our", "unser"),
                   ("their", "ihr"))
]  # fmt: skip
THIS = Determiner("this", "dies", FULL_ENDINGS, WEAK, True)
THESE = replace(THIS, en="these")
EVERY = Determiner("every", "jed", FULL_ENDINGS, WEAK, False)
MANY = Determiner("many", "viel", MANY_ENDINGS, STRONG, False)
NUMBERS = [Determiner(en, de, NO_ENDINGS, STRONG, False) for en, de in (("two", "zwei"), ("three", "drei"))]

DEFINITE_SINGULAR = (THE, THE, THE, THE, THIS, *POSSESSIVES)
DEFINITE_PLURAL = (THE, THE, THE, THESE, *POSSESSIVES)
SINGULAR = (*DEFINITE_SINGULAR, THE, A, A, A, A, A, EVERY, NO)
PLURAL = (*DEFINITE_PLURAL, BARE, BARE, MANY, *NUMBERS)


@dataclass(frozen=True)
class Nominal:
    """A determiner and a noun, perhaps with an adjective, a possessor or a relative clause."""

    determiner: Determiner
    noun: Noun
    plural: bool = False
    adjective: Adjective | None = None
    possessor: Nominal | None = None
    relative: Clause | None = None

    @property
    def person(self) -> str:
        return "3p" if self.plural else "3s"

    @property
    def gender(self) -> str:
        return "p" if self.plural else self.noun.gender

    @property
    def definite(self) -> bool:
        return self.determiner.definite

    def english(self, case: str) -> list[str]:
        words = [self.adjective.en] if self.adjective else []
        words.append(self.noun.en_plural if self.plural else self.noun.en)
        determiner = "an" if self.determiner is A and words[0][0] in "aeiou" else self.determiner.en
        words = [determiner, *words] if determiner else words
        if self.possessor:
            words += ["of", *self.possessor.english("G")]
        return words + (self.relative.english_relative() if self.relative else [])

    def german(self, case: str) -> list[str]:
        determiner = self.determiner.german(self.gender, case)
        words = [determiner] if determiner else []
        if self.adjective:
            words.append(self.adjective.stem + self.determiner.adjective_endings[self.gender]["NADG".index(case)])
        words.append(self.noun.german(case, self.plural))
        if self.possessor:
            words += self.possessor.german("G")
        return words + ([",", *self.relative.german_relative(), ","] if self.relative else [])


@dataclass(frozen=True)
class Pronoun:
    """A phrase of one word on each side, given by its forms, and the noun it stands for where there is one."""

    person: str
    en: tuple[str, str]  # subject, object
    de: tuple[str, str, str]  # N, A, D
    noun: Noun | None = None

    def english(self, case: str) -> list[str]:
        return [self.en[case != "N"]]

    def german(self, case: str) -> list[str]:
        return [self.de["NAD".index(case)]]


@dataclass(frozen=True)
class Coordination:
    """Two phrases joined by "and"."""

    first: Nominal
    second: Nominal
    person: str = "3p"

    def english(self, case: str) -> list[str]:
        return [*self.first.english(case), "and", *self.second.english(case)]

    def german(self, case: str) -> list[str]:
        return [*self.first.german(case), "und", *self.second.german(case)]


Phrase = Nominal | Pronoun | Coordination

PRONOUNS = [
    Pronoun("1s", ("I", "me"), ("ich", "mich", "mir")),
    Pronoun("2s", ("you", "you"), ("du", "dich", "dir")),
    Pronoun("3s", ("he", "him"), ("er", "ihn", "ihm")),
    Pronoun("3s", ("she", "her"), ("sie", "sie", "ihr")),
    Pronoun("1p", ("we", "us"), ("wir", "uns", "uns")),
    Pronoun("3p", ("they", "them"), ("sie", "sie", "ihnen")),
]
WHO = Pronoun("3s", ("who", "whom"), ("wer", "wen", "wem"))
WHAT = Pronoun("3s", ("what", "what"), ("was", "was", ""))
_GERMAN_PRONOUNS = {
    "m": ("er", "ihn", "ihm"), "f": ("sie", "sie", "ihr"), "n": ("es", "es", "ihm"), "p": ("sie", "sie", "ihnen"),
}  # fmt: skip
_PERSONAL = {"m": ("he", "him"), "f": ("she", "her")}


def _pronoun_for(phrase: Nominal) -> Pronoun:
    """The pronoun that takes up `phrase`; in German it has the noun's gender, whatever that means."""
    english = ("it", "it")
    if phrase.plural:
        english = ("they", "them")
    elif phrase.noun.kind == "P":
        english = _PERSONAL[phrase.noun.gender]
    return Pronoun(phrase.person, english, _GERMAN_PRONOUNS[phrase.gender], phrase.noun)


def _relative_for(phrase: Nominal) -> Pronoun:
    english = ("who", "whom") if phrase.noun.kind == "P" else ("that", "that")
    return Pronoun(phrase.person, english, RELATIVES[phrase.gender], phrase.noun)


# ---- clauses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepositional:
    """A preposition and its phrase, in both languages."""

    en: str
    de: str
    case: str
    phrase: Nominal | Pronoun

    def english(self) -> list[str]:
        return [*self.en.split(), *self.phrase.english("A")]

    def german(self) -> list[str]:
        first, *rest = self.phrase.german(self.case)
        joined = f"{self.de} {first}"
        is_article = isinstance(self.phrase, Nominal) and self.phrase.determiner is THE
        if is_article and joined in CONTRACTIONS:
            return [CONTRACTIONS[joined], *rest]
        return [self.de, first, *rest]


@dataclass(frozen=True)
class Clause:
    """One verb and what belongs to it; spoken by `english*` and `german*`.

    `predicate` is an (English, German) complement of "be"; `gap` names the object that stands in front of the clause as
    a relative pronoun or question word ("accusative" or "dative").
    """

    subject: Phrase
    verb: Verb
    tense: str = "present"
    negated: bool = False
    accusative: Nominal | Pronoun | None = None
    dative: Nominal | Pronoun | None = None
    with_to: bool = False
    prepositional: Prepositional | None = None
    place: Prepositional | None = None
    direction: Prepositional | None = None
    time: tuple[str, str] | None = None
    frequency: tuple[str, str] | None = None
    manner: tuple[str, str] | None = None
    predicate: tuple[list[str], list[str]] | None = None
    gap: str | None = None

    # English

    def _english_verb(self, inverted: bool) -> tuple[str, str]:
        """The auxiliary ("" for none) and the rest of the verb; "do" where English needs it."""
        third, tense, base = self.subject.person == "3s", self.tense, self.verb.base
        if self.verb is BE and tense in ("present", "past"):
            return (BE_PRESENT if tense == "present" else BE_PAST)[self.subject.person], ""
        if tense in ("will", "can", "could", "must", "should", "may"):
            return tense, base
        if inverted or self.negated:
            past = tense in ("past", "wanted to", "had to")
            plain = {"want to": f"want to {base}", "wanted to": f"want to {base}", "had to": f"have to {base}"}
            return "did" if past else "does" if third else "do", plain.get(tense, base)
        spoken = {
            "present": self.verb.third if third else base,
            "past": self.verb.past,
            "want to": f"wants to {base}" if third else f"want to {base}",
            "wanted to": f"wanted to {base}",
            "had to": f"had to {base}",
        }
        return "", spoken[tense]

    def _english(self, inverted: bool) -> list[str]:
        auxiliary, main = self._english_verb(inverted)
        negation = "not" if self.negated else ""
        if negation and auxiliary == "can" and not inverted:
            auxiliary, negation = "cannot", ""
        adverb = self.frequency[0] if self.frequency else ""
        verb = [word for word in (negation, adverb, main) if word]
        subject, auxiliary = self.subject.english("N"), [auxiliary] if auxiliary else []
        return [*(auxiliary + subject if inverted else subject + auxiliary), *verb, *self.english_rest()]

    def english(self) -> list[str]:
        """Statement order."""
        return self._english(inverted=False)

    def english_question(self) -> list[str]:
        """Question order, from the auxiliary on."""
        return self._english(inverted=True)

    def english_rest(self) -> list[str]:
        """Everything behind the verb, time included."""
        accusative = self.accusative.english("A") if self.accusative and self.gap != "accusative" else []
        dative = self.dative.english("D") if self.dative and self.gap != "dative" else []
        words = [*accusative, "to", *dative] if self.with_to and dative else [*dative, *accusative]
        words += self.prepositional.english() if self.prepositional else []
        words += self.predicate[0] if self.predicate else []
        words += [self.manner[0]] if self.manner else []
        for phrase in (self.direction, self.place):
            words += phrase.english() if phrase else []
        return words + ([self.time[0]] if self.time else [])

    def english_infinitive(self) -> list[str]:
        return [self.verb.base, *self.english_rest()]

    def english_relative(self) -> list[str]:
        return [*(getattr(self, self.gap).english("A") if self.gap else []), *self.english()]

    # German

    def _german_verb(self) -> tuple[str, str, list[str]]:
        """The particle that the finite verb has lost, the finite verb, and the infinitive or participle that closes."""
        person = self.subject.person
        if self.tense == "present":
            return self.verb.particle, self.verb.forms[person], []
        if self.tense == "past":
            if self.verb is BE:
                return "", FINITE["war"][person], []
            return "", FINITE[self.verb.auxiliary][person], [self.verb.de_participle]
        return "", FINITE[self.tense][person], [self.verb.full_infinitive]

    def german_middle(self) -> list[str]:
        """From behind the subject to before the closing verbs: pronouns, what is known, time, what is new, the rest."""
        accusative = self.accusative if self.gap != "accusative" else None
        dative = self.dative if self.gap != "dative" else None
        negation = ["nicht"] if self.negated else []
        if self.negated and isinstance(accusative, Nominal) and accusative.determiner in (A, BARE):
            accusative, negation = replace(accusative, determiner=NO), []
        objects = [(accusative, "A"), (dative, "D")] if isinstance(accusative, Pronoun) else [
            (dative, "D"), (accusative, "A")]  # fmt: skip
        objects = [(phrase, case) for phrase, case in objects if phrase]
        pronouns = [word for phrase, case in objects if isinstance(phrase, Pronoun) for word in phrase.german(case)]
        nominals = [(phrase, case) for phrase, case in objects if isinstance(phrase, Nominal)]
        known = [word for phrase, case in nominals if phrase.definite for word in phrase.german(case)]
        new = [word for phrase, case in nominals if not phrase.definite for word in phrase.german(case)]
        when = [adverb[1] for adverb in (self.time, self.frequency) if adverb]
        words = [*pronouns, *known, *when, *new, *negation]
        words += [self.manner[1]] if self.manner else []
        for phrase in (self.place, self.prepositional, self.direction):
            words += phrase.german() if phrase else []
        return words + (self.predicate[1] if self.predicate else [])

    def german_inverted(self, subject: bool = True) -> list[str]:
        """From the finite verb on, with the subject behind it: behind a fronted phrase, and in questions."""
        particle, finite, closing = self._german_verb()
        words = [finite, *(self.subject.german("N") if subject else []), *self.german_middle(), *closing]
        return words + ([particle] if particle else [])

    def german(self) -> list[str]:
        """Statement order: the subject, then the finite verb."""
        return [*self.subject.german("N"), *self.german_inverted(subject=False)]

    def german_final(self) -> list[str]:
        """The order of subordinate clauses: the finite verb last."""
        particle, finite, closing = self._german_verb()
        return [*self.subject.german("N"), *self.german_middle(), *closing, particle + finite]

    def german_infinitive(self) -> list[str]:
        return [*self.german_middle(), *self.verb.zu_infinitive]

    def german_relative(self) -> list[str]:
        case = {"accusative": "A", "dative": "D"}.get(self.gap)
        return [*(getattr(self, self.gap).german(case) if self.gap else []), *self.german_final()]

    # What it is about

    def roles(self) -> list[str]:
        """Who does what to whom, by lemmas, such as `["dog see man"]`; what is not a noun has no role."""
        parts = [part.phrase for part in (self.prepositional, self.direction, self.place) if part]
        objects = [phrase.noun for phrase in (self.accusative, self.dative, *parts) if phrase and phrase.noun]
        phrases = [self.subject]
        if isinstance(self.subject, Coordination):
            phrases = [self.subject.first, self.subject.second]
        own = [f"{s.noun.en} {self.verb.base} {noun.en}" for s in phrases if s.noun for noun in objects]
        inner = [s.relative for s in phrases if isinstance(s, Nominal) and s.relative]
        return own + [role for clause in inner for role in clause.roles()]


@dataclass(frozen=True)
class Passive(Clause):
    """Subject and agent (the prepositional phrase) with the roles turned round; present and past only."""

    def _english_verb(self, inverted: bool) -> tuple[str, str]:
        return (BE_PRESENT if self.tense == "present" else BE_PAST)[self.subject.person], self.verb.participle

    def _german_verb(self) -> tuple[str, str, list[str]]:
        finite = FINITE["will" if self.tense == "present" else "wurde"]
        return "", finite[self.subject.person], [self.verb.de_participle]

    def roles(self) -> list[str]:
        agent, patient = self.prepositional.phrase.noun, self.subject.noun
        return [f"{agent.en} {self.verb.base} {patient.en}"] if agent and patient else []


@dataclass(frozen=True)
class Sentence:
    """A sentence in both languages and the combinations of subject, verb and object in it."""

    english: str
    german: str
    roles: tuple[str, ...]


def _sentence(english: list[str], german: list[str], *clauses: Clause, end: str = ".") -> Sentence:
    return Sentence(_spell(english, end), _spell(german, end), tuple(role for c in clauses for role in c.roles()))


def _spell(words: list[str], end: str) -> str:
    text = " ".join(words).replace(" , ,", " ,").replace(" ,", ",").removesuffix(",")
    return text[0].upper() + text[1:] + end


# ---- drawing sentences -----------------------------------------------------------------------------------------------


@lru_cache
def _nouns(kinds: str) -> tuple[Noun, ...]:
    return tuple(noun for noun in LEXICON if set(kinds) & {noun.kind, *noun.kinds})


@lru_cache
def _adjectives(kind: str) -> tuple[Adjective, ...]:
    return tuple(adjective for adjective in ADJECTIVE_LIST if kind in adjective.kinds)


class Draw:
    """Draws phrases, clauses and sentences. A method that finds no fitting sentence returns None; one draws again."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    # Chance

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random() * len(options))]

    def weighted(self, options: Sequence[tuple[T, int]]) -> T:
        point = self._random() * sum(weight for _, weight in options)
        for option, weight in options[:-1]:
            point -= weight
            if point < 0:
                return option
        return options[-1][0]

    # Phrases

    def noun(self, kinds: str) -> Noun:
        return self.pick(_nouns(kinds))

    def nominal(
        self,
        kinds: str,
        singular: Sequence[Determiner] = SINGULAR,
        plural: Sequence[Determiner] = PLURAL,
        rich: bool = False,
    ) -> Nominal:
        """A noun phrase; a `rich` one may have a possessor."""
        noun = self.noun(kinds)
        is_plural = bool(plural) and self.chance(0.25)
        determiner = self.pick(plural if is_plural else singular)
        adjective = self.pick(_adjectives(noun.kind)) if self.chance(0.35) else None
        possessor = None
        if rich and determiner is THE and self.chance(0.15):
            possessor = self.nominal("P", (THE, THE, *POSSESSIVES), (THE,))
        return Nominal(determiner, noun, is_plural, adjective, possessor)

    def definite(self, kinds: str) -> Nominal:
        return self.nominal(kinds, DEFINITE_SINGULAR, DEFINITE_PLURAL)

    def subject(self, kinds: str, negated: bool = False, plain: bool = False) -> Phrase:
        """A subject; a `plain` one has no clause or second phrase in it."""
        singular, plural = (DEFINITE_SINGULAR, DEFINITE_PLURAL) if negated else (SINGULAR, PLURAL)
        if "P" in kinds and self.chance(0.25):
            return self.pick(PRONOUNS)
        if not plain and self.chance(0.07):
            return Coordination(self.definite(kinds), self.definite(kinds))
        phrase = self.nominal(kinds, singular, plural, rich=not plain)
        if not plain and not phrase.possessor and phrase.determiner not in (NO, EVERY) and self.chance(0.12):
            phrase = replace(phrase, relative=self.relative(phrase))
        return phrase

    def object(self, kinds: str, subject: Phrase, determiners: str) -> Nominal | Pronoun:
        """`determiners`: "all", "negated" (those that go with a negated verb) or "definite"."""
        if "P" in kinds and self.chance(0.15):
            others = [p for p in PRONOUNS if p.person[0] == "3" or p.person[0] != subject.person[0]]
            return self.pick(others)
        if determiners == "definite":
            return self.definite(kinds)
        if determiners == "negated":
            return self.nominal(kinds, (*DEFINITE_SINGULAR, A, A, A), (*DEFINITE_PLURAL, BARE), rich=True)
        without_no = [determiner for determiner in SINGULAR if determiner is not NO]
        refused = isinstance(subject, Nominal) and subject.determiner is NO
        return self.nominal(kinds, without_no if refused else SINGULAR, PLURAL, rich=True)

    def prepositional(self, table: Sequence[tuple[str, str, str, str]]) -> Prepositional:
        english, kinds, german, case = self.pick(table)
        singular = (THE, THE, THE, THE, THE, A, THIS, *POSSESSIVES[:2])
        return Prepositional(english, german, case, self.nominal(kinds, singular, ()))

    # Clauses

    def relative(self, head: Nominal) -> Clause:
        """A clause about `head`, which is its subject or its object."""
        pronoun = _relative_for(head)
        tense = self.pick(("present", "present", "past"))
        if head.noun.kind in "PA" and self.chance(0.6):
            verb = self.pick([v for v in VERB_LIST if head.noun.kind in v.subjects and v.frame in ("a", "d", "i")])
            clause = Clause(pronoun, verb, tense)
            return self._with_object(clause, "definite") if verb.frame != "i" else clause
        verb = self.pick([v for v in VERB_LIST if head.noun.kind in v.objects and v.frame in ("a", "d")])
        role = "accusative" if verb.frame == "a" else "dative"
        subject = self.pick(PRONOUNS) if "P" in verb.subjects and self.chance(0.3) else self.definite(verb.subjects)
        return replace(Clause(subject, verb, tense, gap=role), **{role: pronoun})

    def clause(
        self,
        subject: Phrase | None = None,
        *,
        tense: str | None = None,
        verbs: Callable[[Verb], bool] = lambda verb: True,
        adverbs: float = 1.0,
        plain: bool = False,
    ) -> Clause:
        """Any active clause; `adverbs` scales how often it says when and where."""
        verb = self.pick([v for v in VERB_LIST if verbs(v) and (subject is None or self._fits(subject, v))])
        tense = tense or self.weighted([(name, weight) for name, weight, _ in TENSES])
        negated = tense not in NOT_NEGATED and self.chance(0.15)
        if subject is None:
            subject = self.subject(verb.subjects, negated, plain)
        determiner = getattr(subject, "determiner", None)
        negated = negated and (determiner is None or determiner in (*DEFINITE_SINGULAR, *DEFINITE_PLURAL))
        clause = Clause(subject, verb, tense, negated)
        if verb.frame in ("i", "m") and not negated and self.chance(0.2 * adverbs):
            clause = replace(clause, manner=self.pick(MANNERS))
        if verb.frame in ("m", "am"):
            clause = replace(clause, direction=self.prepositional(DIRECTIONS))
        elif ":" not in verb.frame and verb.frame not in ("da", "dt") and self.chance(0.3 * adverbs):
            clause = replace(clause, place=self.prepositional(PLACES))
        return self._with_time(self._with_object(clause, "negated" if negated else "all"), adverbs)

    @staticmethod
    def _fits(subject: Phrase, verb: Verb) -> bool:
        noun = getattr(subject, "noun", None)
        return noun.kind in verb.subjects if noun else "P" in verb.subjects

    def _with_object(self, clause: Clause, determiners: str) -> Clause:
        """The clause with the objects that its verb asks for. Two of them never both have "no"."""
        verb, subject = clause.verb, clause.subject
        if verb.frame in ("a", "am"):
            return replace(clause, accusative=self.object(verb.objects, subject, determiners))
        if verb.frame == "d":
            determiners = "definite" if determiners == "negated" else determiners
            return replace(clause, dative=self.object(verb.objects, subject, determiners))
        if verb.frame in ("da", "dt"):
            accusative = self.object(verb.objects, subject, determiners)
            refused = clause.negated or isinstance(accusative, Nominal) and accusative.determiner is NO
            dative = self.object("P", subject, "definite" if refused else determiners)
            with_to = verb.frame == "dt" or isinstance(accusative, Pronoun) or self.chance(0.4)
            return replace(clause, accusative=accusative, dative=dative, with_to=with_to)
        if ":" in verb.frame:
            english, german, case = verb.frame.split(":")
            phrase = self.object(verb.objects, subject, "definite" if determiners == "negated" else determiners)
            return replace(clause, prepositional=Prepositional(english, german, case, phrase))
        return clause

    def _with_time(self, clause: Clause, adverbs: float) -> Clause:
        if not clause.negated and clause.tense in ("present", "past") and self.chance(0.15 * adverbs):
            said_no = any(getattr(phrase, "determiner", None) is NO for phrase in self._phrases(clause))
            return replace(clause, frequency=self.pick(FREQUENCIES[:4] if said_no else FREQUENCIES))
        if self.chance(0.35 * adverbs):
            return replace(clause, time=self.time(clause.tense))
        return clause

    @staticmethod
    def _phrases(clause: Clause) -> list[Phrase | None]:
        parts = (clause.prepositional, clause.direction, clause.place)
        return [clause.subject, clause.accusative, clause.dative, *(part.phrase for part in parts if part)]

    def time(self, tense: str) -> tuple[str, str]:
        return self.pick([(en, de) for when, en, de in TIME_LIST if when in ("any", TIME_CLASS[tense])])

    def state(self, subject: Phrase | None = None, tense: str | None = None, plain: bool = False) -> Clause:
        """A clause with "be" and an adjective, a comparison or a place."""
        tense = tense or self.pick(("present", "present", "past", "will"))
        negated = self.chance(0.15)
        if subject is None:
            subject = self.subject(self.pick("PPAATTO"), negated, plain)
        noun = subject.first.noun if isinstance(subject, Coordination) else subject.noun
        kind = noun.kind if noun else "P"
        determiner = getattr(subject, "determiner", None)
        negated = negated and (determiner is None or determiner.definite)
        clause = Clause(subject, BE, tense, negated)
        if kind != "O" and self.chance(0.2):
            return replace(clause, place=self.prepositional(PLACES))
        adjective = self.pick(_adjectives(kind))
        predicate = [adjective.en], [adjective.de]
        if adjective.de_more != "-" and self.chance(0.3):
            other = self.definite(kind)
            predicate = (
                [*adjective.en_more.split(), "than", *other.english("A")],
                [adjective.de_more, "als", *other.german("N")],
            )
        return self._with_time(replace(clause, predicate=predicate), 0.5)

    def any_clause(self, tense: str | None = None, adverbs: float = 0.5) -> Clause:
        return self.state(tense=tense, plain=True) if self.chance(0.2) else self.clause(
            tense=tense, adverbs=adverbs, plain=True)  # fmt: skip

    # Sentences

    def sentence(self) -> Sentence | None:
        return self.weighted(KINDS)(self)

    def statement(self) -> Sentence:
        """One main clause; time or place may come first, and then the German subject follows its verb."""
        clause = self.state() if self.chance(0.15) else self.clause()
        if clause.time and self.chance(0.4):
            rest = replace(clause, time=None)
            return _sentence([clause.time[0], *rest.english()], [clause.time[1], *rest.german_inverted()], clause)
        if clause.place and not clause.negated and clause.verb is not BE and self.chance(0.3):
            rest = replace(clause, place=None)
            english, german = clause.place.english(), clause.place.german()
            return _sentence([*english, *rest.english()], [*german, *rest.german_inverted()], clause)
        return _sentence(clause.english(), clause.german(), clause)

    def passive(self) -> Sentence:
        verb = self.pick([v for v in VERB_LIST if v.frame == "a" and v.participle])
        tense = self.pick(("present", "past"))
        agent = self.definite(verb.subjects)
        if "P" in verb.subjects and self.chance(0.1):
            agent = self.pick(PRONOUNS)
        subject = self.nominal(verb.objects)
        clause = Passive(subject, verb, tense, prepositional=Prepositional("by", "von", "D", agent))
        if self.chance(0.3):
            clause = replace(clause, time=self.time(tense))
            if self.chance(0.4):
                rest = replace(clause, time=None)
                return _sentence([clause.time[0], *rest.english()], [clause.time[1], *rest.german_inverted()], clause)
        return _sentence(clause.english(), clause.german(), clause)

    def existence(self) -> Sentence:
        """There is a dog in the garden. - Es gibt einen Hund im Garten."""
        phrase = self.nominal("PAT", (A, A, NO), (BARE, MANY, *NUMBERS))
        place = self.prepositional(PLACES)
        past = self.chance(0.4)
        verb = (BE_PAST if past else BE_PRESENT)[phrase.person]
        english = ["there", verb, *phrase.english("N"), *place.english()]
        return _sentence(english, ["es", "gab" if past else "gibt", *phrase.german("A"), *place.german()])

    def question(self) -> Sentence:
        """Answered by yes or no."""
        clause = self.any_clause(adverbs=0.7)
        return _sentence(clause.english_question(), clause.german_inverted(), clause, end="?")

    def adverb_question(self) -> Sentence:
        english, german = self.pick((("where", "wo"), ("when", "wann"), ("why", "warum")))
        clause = self.clause(verbs=lambda verb: verb.frame not in ("m", "am"), adverbs=0.5, plain=True)
        clause = replace(clause, place=None if english == "where" else clause.place)
        clause = replace(clause, time=None if english == "when" else clause.time)
        return _sentence([english, *clause.english_question()], [german, *clause.german_inverted()], clause, end="?")

    def subject_question(self) -> Sentence:
        clause = self.clause(WHO, adverbs=0.6)
        return _sentence(clause.english(), clause.german(), clause, end="?")

    def object_question(self) -> Sentence:
        """Whom does the dog see? - Wen sieht der Hund?"""
        clause = self.clause(verbs=lambda verb: verb.frame in ("a", "d", "da"), adverbs=0.5, plain=True)
        if clause.verb.frame == "a":
            clause = replace(clause, accusative=WHO if "P" in clause.verb.objects else WHAT, gap="accusative")
        elif clause.verb.frame == "d":
            clause = replace(clause, dative=WHO, gap="dative")
        else:
            clause = replace(clause, accusative=WHAT, gap="accusative", with_to=False)
        word = getattr(clause, clause.gap)
        english = [*word.english("A"), *clause.english_question()]
        german = [*word.german("A" if clause.gap == "accusative" else "D"), *clause.german_inverted()]
        return _sentence(english, german, clause, end="?")

    def reported(self) -> Sentence:
        """She says that ... - Sie sagt, dass ... (finite verb last)"""
        verb = self.pick([v for v in MATRIX_LIST if v.frame != "to/zu"])
        english, german = verb.frame.split("/")
        main = Clause(self.subject("P", plain=True), verb, self.pick(("present", "past")))
        inner = self.any_clause()
        words = [*main.english(), english, *inner.english()]
        return _sentence(words, [*main.german(), ",", german, *inner.german_final()], main, inner)

    def intention(self) -> Sentence:
        """She tries to ... - Sie versucht, ... zu ..."""
        verb = self.pick([v for v in MATRIX_LIST if v.frame == "to/zu"])
        tense = self.pick(("present", "past"))
        main = Clause(self.subject("P", plain=True), verb, tense)
        main = replace(main, time=self.time(tense)) if self.chance(0.2) else main
        inner = self._infinitive(main.subject)
        inner = replace(inner, time=None) if main.time else inner
        front = [main.time[0]] if main.time else []
        rest = replace(main, time=None)
        german = [main.time[1], *rest.german_inverted()] if main.time else rest.german()
        words = [*front, *rest.english(), "to", *inner.english_infinitive()]
        return _sentence(words, [*german, ",", *inner.german_infinitive()], main, inner)

    def purpose(self) -> Sentence:
        """She goes to the city to ... - Sie geht in die Stadt, um ... zu ..."""
        main = self.clause(verbs=lambda verb: verb.frame == "m" and "P" in verb.subjects, adverbs=0.0, plain=True)
        inner = self._infinitive(main.subject)
        words = [*main.english(), "to", *inner.english_infinitive()]
        return _sentence(words, [*main.german(), ",", "um", *inner.german_infinitive()], main, inner)

    def _infinitive(self, subject: Phrase) -> Clause:
        frames = ("a", "a", "d", "da", "dt")
        clause = self.clause(subject, tense="present", verbs=lambda verb: verb.frame in frames, adverbs=0.4)
        return replace(clause, negated=False, frequency=None)

    def subordinate(self) -> Sentence:
        """A clause of reason or time before or behind the main clause."""
        english, german = self.pick(
            (("because", "weil"), ("although", "obwohl"), ("if", "wenn"), ("when", "wenn"), ("when", "als"))
        )
        tense = {"als": "past", "wenn": "present"}.get(german) or self.pick(("present", "past"))
        main, inner = self.any_clause(tense, adverbs=0.3), self.any_clause(tense, adverbs=0.3)
        return self._joined(main, inner, english, german, front=self.chance(0.4))

    def reason(self) -> Sentence | None:
        """A reason that takes up a phrase of the main clause by a pronoun: "it" is er, sie or es."""
        tense = self.pick(("present", "past"))
        main = self.clause(tense=tense, verbs=lambda v: v.frame in ("a", "da") and v.subjects == "P", adverbs=0.3,
                           plain=True)  # fmt: skip
        subject, thing = main.subject, main.accusative
        if not isinstance(thing, Nominal) or thing.noun.kind == "P" or thing.determiner in (NO, EVERY, A):
            return None
        if main.negated or getattr(subject, "determiner", None) in (NO, EVERY):
            return None
        if self.chance(0.5):
            inner = self.state(_pronoun_for(thing), tense)
        else:
            if isinstance(subject, Nominal):
                if subject.noun.gender == "n" and not subject.plural:
                    return None  # "the girl ... she": German hesitates between es and sie
                subject = _pronoun_for(subject)
            verbs = [v for v in VERB_LIST if v.frame == "a" and v.subjects == "P"]
            verb = self.pick([v for v in verbs if thing.noun.kind in v.objects])
            inner = Clause(subject, verb, tense, accusative=_pronoun_for(thing))
        english, german = self.pick((("because", "weil"), ("although", "obwohl")))
        return self._joined(main, inner, english, german, front=False)

    @staticmethod
    def _joined(main: Clause, inner: Clause, english: str, german: str, front: bool) -> Sentence:
        if front:
            words = [english, *inner.english(), ",", *main.english()]
            return _sentence(words, [german, *inner.german_final(), ",", *main.german_inverted()], main, inner)
        words = [*main.english(), english, *inner.english()]
        return _sentence(words, [*main.german(), ",", german, *inner.german_final()], main, inner)

    def sequence(self) -> Sentence | None:
        """The man finds the key and hides it. - Der Mann findet den Schlüssel und versteckt ihn."""
        tense = self.pick(("present", "past"))
        first = self.clause(tense=tense, verbs=lambda verb: verb.frame == "a", adverbs=0.0, plain=True)
        thing = first.accusative
        if first.negated or not isinstance(thing, Nominal) or thing.determiner in (NO, EVERY):
            return None
        if thing.noun.kind == "P" and thing.noun.gender == "n":
            return None
        verbs = [v for v in VERB_LIST if v.frame == "a" and thing.noun.kind in v.objects and v is not first.verb]
        verbs = [v for v in verbs if self._fits(first.subject, v)]
        if not verbs:
            return None
        second = Clause(first.subject, self.pick(verbs), tense, accusative=_pronoun_for(thing))
        subject_words = len(second.subject.english("N"))
        words = [*first.english(), "and", *second.english()[subject_words:]]
        return _sentence(words, [*first.german(), "und", *second.german_inverted(subject=False)], first, second)

    def contrast(self) -> Sentence:
        first, second = self.any_clause(adverbs=0.4), self.any_clause(adverbs=0.4)
        conjunction = self.pick(((",", "but", "aber"), ("", "and", "und")))
        comma = [conjunction[0]] if conjunction[0] else []
        english = [*first.english(), *comma, conjunction[1], *second.english()]
        return _sentence(english, [*first.german(), *comma, conjunction[2], *second.german()], first, second)


KINDS = (
    (Draw.statement, 40), (Draw.passive, 7), (Draw.existence, 2), (Draw.question, 7), (Draw.adverb_question, 4),
    (Draw.subject_question, 2), (Draw.object_question, 4), (Draw.reported, 8), (Draw.intention, 5), (Draw.purpose, 3),
    (Draw.subordinate, 8), (Draw.reason, 7), (Draw.sequence, 4), (Draw.contrast, 5),
)  # fmt: skip

# ---- corpora ---------------------------------------------------------------------------------------------------------


def _sentences(seed: int) -> Iterator[Sentence]:
    """Distinct sentences of fitting length, without end."""
    draw, seen = Draw(seed), set()
    while True:
        sentence = draw.sentence()
        if sentence is None or sentence.english in seen:
            continue
        lengths = len(sentence.english.split()), len(sentence.german.split())
        if SHORTEST <= min(lengths) and max(lengths) <= LONGEST:
            seen.add(sentence.english)
            yield sentence


def generate_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` (English, German) pairs with distinct English sides; equal arguments give equal pairs everywhere."""
    _check_count("count", count)
    return [(sentence.english, sentence.german) for sentence in islice(_sentences(seed), count)]


def demo_corpus(train: int, validation: int, test: int, seed: int = 0) -> dict[str, tuple[list[str], list[str]]]:
    """Three corpora `{"train", "validation", "test"}` of (English sentences, German sentences).

    No English sentence occurs twice. Moreover, one in `HELD_OUT` combinations of subject, verb and object (or place)
    belongs to validation and as many to test. Each sentence of these splits has such a combination, in active or
    passive, and no training sentence has one: who does what to whom must be understood, it cannot be remembered.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for name, size in sizes.items():
        _check_count(name, size)
    corpus: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in sizes}
    stream = _sentences(seed)
    while any(len(corpus[name][0]) < size for name, size in sizes.items()):
        sentence = next(stream)
        owners = {_owner(role) for role in sentence.roles} - {"train"} or {"train"}
        if len(owners) > 1:
            continue
        (name,) = owners
        if len(corpus[name][0]) < sizes[name]:
            corpus[name][0].append(sentence.english)
            corpus[name][1].append(sentence.german)
    return corpus


def _owner(role: str) -> str:
    """The split that a combination belongs to, by its checksum: independent of seed and sizes."""
    return {0: "validation", 1: "test"}.get(zlib.crc32(role.encode()) % HELD_OUT, "train")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a number of sentences >= 0, got {value!r}.")
