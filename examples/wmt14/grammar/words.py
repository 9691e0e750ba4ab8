"""The words of the demo grammar, as tables to read and extend; `lexicon` gives them their forms."""

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
