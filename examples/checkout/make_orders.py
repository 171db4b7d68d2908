"""Makes ``orders.csv``, the same each time: ``python -m examples.checkout.make_orders [COUNT] > orders.csv``."""

from __future__ import annotations

import csv
import random
import sys
import unicodedata

FIRST = "Ada Amélie Björn Chiara Dmitri Elif Fatima Grace Hiroshi Inés Jonas Kofi Lena Mateo Noor Olga Priya Søren"
LAST = "Almeida Bauer Castellanos Dubois Eriksen Fischer García Haddad Ivanova Jansen Kowalski Li Moreau Rossi"
ITEMS = {  # item: unit price
    "Espresso cup, set of 4": "24.90", "Pour-over kettle": "59.00", "Burr grinder": "129.00",
    "Filter papers, 100": "6.50", "Beans, Ethiopia 250 g": "11.80", "Beans, Colombia 250 g": "10.40",
    "Beans, decaf 250 g": "10.90", "Milk jug": "18.75", "Tamper 58 mm": "32.00", "Knock box": "27.50",
    "Scale 0.1 g": "44.99", "Moka pot": "35.20", "French press": "29.95", "Travel mug": "21.00",
    "Cold brew bottle": "19.99", "Cleaning tablets": "8.25", "Descaler": "7.10", "Barista apron": "38.00",
    "Thermometer": "13.45", "Gift card": "50.00", "Cupping spoon": "9.99", "Storage tin": "15.60",
    "Water filter": "16.30", "Brush set": "12.05",
}  # fmt: skip


def main(count: int) -> None:
    dice = random.Random(2000)
    names, prices = list(ITEMS), list(ITEMS.values())
    weights = [1 / (place + 6) for place in range(len(names))]
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["order", "customer", "email", "item", "quantity", "unit_price", "card"])
    for number in range(count):
        first, last = dice.choice(FIRST.split()), dice.choice(LAST.split())
        (item,) = dice.choices(range(len(names)), weights)
        quantity = dice.choices([1, 2, 3, 4, 6, 10], [60, 20, 8, 6, 4, 2])[0]
        card = "tok_declined" if dice.random() < 0.006 else dice.choice(["tok_visa", "tok_mastercard", "tok_amex"])
        email = f"{_plain(first)}.{_plain(last)}{dice.randrange(100)}@example.com"
        out.writerow([f"SO-{10001 + number}", f"{first} {last}", email, names[item], quantity, prices[item], card])


def _plain(name: str) -> str:
    """Lower case, without accents."""
    letters = unicodedata.normalize("NFD", name.replace("ø", "o").lower())
    return "".join(letter for letter in letters if letter.isascii())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
