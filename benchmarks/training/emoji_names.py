"""What is drawn: the emoji by the name a caption has for them, the three styles (icon sets) and the background colours."""

from __future__ import annotations

STYLES: dict[str, str] = {"flat": "fluent-emoji-flat", "noto": "noto", "twemoji": "twemoji"}
"""Icon set (npm package @iconify-json/...) of each style."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "black": (16, 16, 16),
    "pink": (255, 176, 204),
    "orange": (255, 158, 66),
    "yellow": (255, 236, 128),
    "green": (64, 160, 84),
    "light blue": (158, 216, 246),
    "dark blue": (28, 44, 120),
    "purple": (150, 104, 206),
}
"""RGB of the plain backgrounds."""

_RENAMED: dict[str, str] = {
    "angry face": "pouting-face",
    "apple": "red-apple",
    "arm": "flexed-biceps",
    "bee": "honeybee",
    "beer": "beer-mug",
    "cake": "birthday-cake",
    "car": "automobile",
    "cat": "cat-face",
    "cheese": "cheese-wedge",
    "chick": "baby-chick",
    "chili": "hot-pepper",
    "clover": "four-leaf-clover",
    "clown": "clown-face",
    "cocktail": "cocktail-glass",
    "coffee": "hot-beverage",
    "cool face": "smiling-face-with-sunglasses",
    "corn": "ear-of-corn",
    "cow": "cow-face",
    "cowboy": "cowboy-hat-face",
    "crying face": "loudly-crying-face",
    "devil": "smiling-face-with-horns",
    "diamond": "gem-stone",
    "dog": "dog-face",
    "donut": "doughnut",
    "dragon": "dragon-face",
    "drumstick": "poultry-leg",
    "eight ball": "pool-8-ball",
    "flower": "hibiscus",
    "football": "american-football",
    "fries": "french-fries",
    "gamepad": "video-game",
    "gift": "wrapped-gift",
    "globe": "globe-showing-americas",
    "heart": "red-heart",
    "heart eyes": "smiling-face-with-heart-eyes",
    "horse": "horse-face",
    "hourglass": "hourglass-done",
    "ice cream": "soft-ice-cream",
    "ladybug": "lady-beetle",
    "laughing face": "face-with-tears-of-joy",
    "lightning": "high-voltage",
    "lock": "locked",
    "milk": "glass-of-milk",
    "monkey": "monkey-face",
    "moon": "crescent-moon",
    "mountain": "snow-capped-mountain",
    "mouse": "mouse-face",
    "muffin": "cupcake",
    "music note": "musical-note",
    "paint palette": "artist-palette",
    "pepper": "bell-pepper",
    "phone": "telephone",
    "pig": "pig-face",
    "pine tree": "evergreen-tree",
    "planet": "ringed-planet",
    "poop": "pile-of-poo",
    "pumpkin": "jack-o-lantern",
    "rabbit": "rabbit-face",
    "santa": "santa-claus",
    "shell": "spiral-shell",
    "sick face": "nauseated-face",
    "smartphone": "mobile-phone",
    "sneaker": "running-shoe",
    "snowman": "snowman-without-snow",
    "tiger": "tiger-face",
    "tree": "deciduous-tree",
    "truck": "delivery-truck",
    "tv": "television",
    "warning sign": "warning",
    "whale": "spouting-whale",
}

_PLAIN = """
    alarm-clock alien ambulance anchor avocado backpack balloon banana baseball basketball bell bicycle bomb bread broccoli bubble-tea
    bus butterfly cactus camera candle candy carrot castle cherries chocolate-bar christmas-tree cloud coin cookie crab crocodile crown
    cucumber dolphin dress drum duck eagle eggplant elephant envelope eye fire fish flamingo floppy-disk flying-saucer fox frog game-die
    ghost giraffe glasses gorilla grapes green-apple grinning-face guitar hamburger hammer hedgehog helicopter high-heeled-shoe hot-dog
    house jellyfish key kiwi-fruit koala lemon light-bulb lion lollipop magnet mango maple-leaf microphone moai motorcycle mushroom
    octopus onion owl palm-tree panda parrot peach peacock pear pencil penguin pineapple pizza polar-bear police-car popcorn pretzel
    rainbow robot rocket rooster rose sailboat saxophone scissors scorpion shark shield skateboard skull sleeping-face snail snake
    snowflake soccer-ball spider star stop-sign strawberry sun sunflower sunglasses sushi t-rex t-shirt taco teapot teddy-bear tennis
    thumbs-up tomato trophy tulip turtle umbrella unicorn violin volcano volleyball watermelon wine-glass zebra
"""

EMOJI: dict[str, str] = dict(sorted((_RENAMED | {slug.replace("-", " "): slug for slug in _PLAIN.split()}).items()))
"""Icon of each emoji by the name that captions have for it; the order is the order of the labels."""
