"""The vocabulary of the generator: closed lists, and invented words for the open classes."""

from __future__ import annotations

from random import Random


def word_list(text: str) -> tuple[str, ...]:
    """The words of `text`; an underscore stands for a space inside one."""
    return tuple(word.strip().replace("_", " ") for word in text.split())


NAMES = word_list("""
Ada Adam Alan Alice Amir Amy Anna Ben Bob Boris Carl Carla Carmen Chen Clara Dana Daniel David Diego
Dora Edgar Elena Emil Emma Eric Eva Felix Fiona Frank Fred George Grace Greta Hana Hans Helen Henry Ian
Ida Igor Ines Iris Ivan Jack James Jane Jim Joan Joe John Jonas Julia Kai Karl Kate Ken Kim Lara Laura
Lena Leo Li Lily Linda Liu Lucas Lucy Luis Maria Mark Marta Mary Max Maya Mei Mia Mike Mila Mina Nadia
Nick Nina Noah Nora Olga Oliver Omar Oscar Otto Paul Paula Pedro Peter Petra Priya Ravi Rita Robert Rosa
Ruth Sam Sara Simon Sofia Sonia Stefan Sven Tania Tara Theo Thomas Tim Tina Tom Uma Vera Victor Vito
Wang Wei Will Xavier Yan Yara Yuki Yusuf Zara Zoe
""")
CITIES = word_list("""
Amsterdam Ankara Athens Bangkok Barcelona Basel Beijing Berlin Bern Bogota Bonn Boston Brussels Budapest
Cairo Chicago Cologne Copenhagen Dakar Delhi Denver Dublin Florence Geneva Hamburg Hangzhou Hanoi Helsinki
Istanbul Jakarta Kiel Krakow Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Melbourne Miami Milan
Montreal Mumbai Munich Nairobi Naples New_York Nice Oslo Oxford Paris Porto Prague Quito Riga Rome
San_Francisco Santiago Seattle Seoul Seville Shanghai Singapore Sofia Stockholm Sydney Taipei Tallinn Tokyo
Toronto Turin Utrecht Valencia Venice Vienna Warsaw Zurich
""")
COLOURS = word_list("""
red green blue yellow orange purple pink brown black white grey teal violet gold silver turquoise crimson
beige indigo magenta cyan olive lilac navy scarlet amber maroon emerald
""")
FOODS = word_list("""
pizza pasta rice soup bread cheese salad curry sushi tacos noodles pancakes lasagna risotto dumplings
chocolate potatoes beans tofu falafel fish cake stew omelette pie couscous ramen waffles
""")
DRINKS = word_list("coffee tea water milk juice lemonade cocoa cider cola mate kefir wine beer")
FRUITS = word_list("""
apple banana cherry grape kiwi lemon mango melon orange peach pear plum fig papaya apricot lime
""")
ANIMALS = word_list("""
cat dog rabbit hamster parrot horse goat turtle fish snake mouse pony lizard canary duck hen sheep ferret
frog donkey pig cow spider goose pigeon
""")
WILD_ANIMALS = word_list("""
tiger lion bear wolf fox whale dolphin eagle owl zebra giraffe panda koala penguin shark camel otter seal
""")
SPORTS = word_list("""
football tennis chess swimming running cycling boxing golf hockey rugby rowing sailing skiing judo climbing
basketball volleyball badminton cricket
""")
FLOWERS = word_list("rose tulip lily daisy orchid violet poppy lotus iris sunflower lavender jasmine")
SEASONS = word_list("spring summer autumn winter")
SUBJECTS = word_list("maths history physics biology music art geography chemistry Latin")
INSTRUMENTS = word_list("piano violin guitar flute drum harp cello trumpet oboe banjo")
JOBS = word_list("""
a_baker a_teacher a_doctor a_nurse a_farmer a_pilot a_painter a_lawyer a_cook a_driver a_writer a_gardener
a_programmer a_carpenter a_plumber a_singer a_dentist a_librarian a_sailor a_tailor a_waiter a_judge
an_engineer an_actor an_architect an_electrician an_artist a_translator a_firefighter a_mechanic
""")
RELATIONS = word_list("""
sister brother mother father friend best_friend teacher boss neighbour cousin uncle aunt wife husband
daughter son grandmother grandfather doctor flatmate partner
""")
NAMED_THINGS = word_list("""
boat team school street village band company project robot ship café shop club farm garden island
""")
COLOURED_THINGS = word_list("""
car bike house door coat bag hat cup chair sofa umbrella phone shirt jacket scarf bed table lamp suitcase
""")
PLACED_THINGS = word_list("""
key wallet map letter ticket passport notebook knife box camera ring parcel bottle ball charger hammer
torch medicine book treasure money gold bicycle ladder shovel vase clock
""")
PLACES = word_list("""
drawer kitchen garage garden cellar attic cupboard hall bathroom office bedroom basket car shed safe
bookcase fridge library backpack desk
""")
NUMBERED_THINGS = word_list("""
lucky_number phone_number house_number room_number seat_number ticket_number shoe_size
locker_number flight_number bus_number email email_address
""")
OTHER_SUBJECTS = word_list("""
film movie song band team planet language tree writer painter singer car shop brand toy cheese show author actor
country river king queen capital street restaurant hero bird dessert holiday
""")
CODES = word_list("secret_code door_code code pin locker_code access_code safe_code secret_number")
PASSWORDS = word_list("password secret_word magic_word codeword passphrase wifi_password")
MONTHS = word_list("January February March April May June July August September October November December")
DAYS = word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

ADJECTIVES = word_list("""
old young quiet loud small tall green grey tired happy lazy brave gentle clever slow quick bright dark
cold warm heavy light strange famous hungry careful proud lonely golden wooden
""")
NOUNS = word_list("""
river mountain sailor baker bridge forest clock window captain painter tower market lantern garden road
island teacher train harbour castle bird cloud farmer machine singer valley lake child horse wind storm
candle field traveller mirror letter boat
""")
VERBS = word_list("""
sleeps waits sings stands moves turns dances works rests shines falls grows hides listens walks stops
remains wanders whispers appears
""")
PREPOSITIONS = word_list("near behind under above beside beyond before towards across_from next_to")
TIMES = (
    "In the morning", "At noon", "In the evening", "At night", "Every day", "In winter", "In summer",
    "After the rain", "Before the storm", "On Monday", "On Sunday", "Once a year", "From time to time",
)  # fmt: skip

COMMON = word_list("""
the a this that is was has good new big little first last one two three here there now then yes no very well we you
they she he it and or but with from for time day night year house home water world people man woman work school
hand eye door table sun moon star sea tree stone paper music dream hello thanks please
""")

_ONSETS = word_list("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t tr v w y z")
_VOWELS = word_list("a e i o u a e i o ai ea ia oo ou")
_CODAS = ("", "", "", "n", "r", "s", "l", "m", "t", "x", "nd", "rk", "th", "k")
_MARKED = "áàâäãåçéèêëíìîïñóòôöõøúùûüýšžčřłğşßœæ"
_RANGES = ((0x410, 0x44F), (0x3B1, 0x3C9), (0x4E00, 0x9FA5), (0x3041, 0x3093), (0x1F600, 0x1F64F))


def invented(rng: Random) -> str:
    """A lower-case word nobody has seen; now and then with marks, foreign letters or a random spelling."""
    shape = rng.random()
    if shape < 0.02:
        low, high = rng.choice(_RANGES)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))
    if shape < 0.12:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))
    word = coined(rng)
    if shape < 0.17:
        spot = rng.randrange(len(word))
        word = word[:spot] + rng.choice(_MARKED) + word[spot + 1 :]
    return word


def coined(rng: Random) -> str:
    """An invented word of one to three plain syllables."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(1, 3)))


def proper(rng: Random, known: tuple[str, ...]) -> str:
    """A capitalised name: mostly one of `known`, otherwise invented, sometimes two words."""
    if rng.random() < 0.55:
        return rng.choice(known)
    name = invented(rng).capitalize()
    return f"{name} {invented(rng).capitalize()}" if rng.random() < 0.1 else name


def digits(rng: Random, low: int, high: int) -> str:
    """A number of `low` to `high` digits without a leading zero."""
    count = rng.randint(low, high)
    return str(rng.randint(10 ** (count - 1) if count > 1 else 0, 10**count - 1))
