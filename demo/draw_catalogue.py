"""Draw a catalogue of garments in Fashion-Gen's raw PAI layout, for the demo and the tests.

    python demo/draw_catalogue.py OUTDIR --train-products 1200 --valid-products 240
    python demo/draw_catalogue.py OUTDIR --train-products 200 --valid-products 0 --table products.csv

A product is a combination of garment, colours, pattern, sleeve, neckline, length, closure, material and trim; its two to
four views differ in pose, scale, background and light; its caption says what the drawing shows, in one of several
wordings. No combination occurs twice, so no validation product equals a training product. OUTDIR receives
full_{split}_info_PAI/*.pkl and extracted_{split}_images/*.png. The same seed draws the same catalogue. With --table,
OUTDIR also receives it as a shop would have it: a CSV with the columns photo, sku, kind, description, colour, pattern
and material.
"""

import argparse
import csv
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

FIRST_ID = 100_000  # of a product
CANVAS, SIZE = 256, 96  # drawn large, then scaled down, which smooths every edge

COLOURS = {
    "black": "#1d1d21", "white": "#f4f2ec", "grey": "#8b8f94", "navy": "#1f2f5c", "blue": "#2f6fd0",
    "sky blue": "#8cc6ee", "teal": "#12837f", "green": "#2f8f3f", "olive": "#75752f", "yellow": "#f2cd2c",
    "orange": "#ee7f22", "red": "#d3212c", "burgundy": "#6d1630", "pink": "#f29ab6", "purple": "#6d3c9c",
    "brown": "#6f4527", "beige": "#d8c3a0",
}  # fmt: skip
PATTERNS = ("solid", "striped", "pinstriped", "checked", "polka dot", "colour block")
TOP_LENGTHS = {"cropped": 0.60, "regular": 0.74, "longline": 0.88}
HEM_LENGTHS = {"mini": 0.58, "knee-length": 0.74, "maxi": 0.92}


class Garment(NamedTuple):
    """What a kind of garment may have; the first word of each choice is what a caption leaves unsaid."""

    category: str
    subcategory: str
    noun: str
    shape: str
    materials: tuple
    necklines: tuple = ("",)
    sleeves: tuple = ("",)
    lengths: tuple = ("",)
    closures: tuple = ("",)
    trims: tuple = ("", "contrast trim", "patch pocket")


GARMENTS = (
    Garment("TOPS", "T-SHIRTS", "T-shirt", "top", ("cotton",), ("crewneck", "V-neck"), ("short sleeve", "long sleeve"), tuple(TOP_LENGTHS)),
    Garment("TOPS", "TANK TOPS", "tank top", "top", ("cotton", "mesh"), ("scoop neck", "V-neck"), ("sleeveless",), tuple(TOP_LENGTHS)),
    Garment("TOPS", "POLOS", "polo", "top", ("cotton",), ("spread collar",), ("short sleeve", "long sleeve"), tuple(TOP_LENGTHS)),
    Garment("SHIRTS", "SHIRTS", "shirt", "top", ("cotton", "denim"), ("spread collar",), ("long sleeve", "short sleeve"), tuple(TOP_LENGTHS), ("button",)),
    Garment("SWEATERS", "KNITWEAR", "sweater", "top", ("knit",), ("crewneck", "V-neck", "turtleneck"), ("long sleeve",), tuple(TOP_LENGTHS)),
    Garment("SWEATERS", "CARDIGANS", "cardigan", "top", ("knit",), ("V-neck",), ("long sleeve",), tuple(TOP_LENGTHS), ("button",)),
    Garment("SWEATERS", "HOODIES", "hoodie", "top", ("fleece",), ("hood",), ("long sleeve",), tuple(TOP_LENGTHS), ("", "zip")),
    Garment("JACKETS & COATS", "JACKETS", "jacket", "top", ("leather", "denim"), ("spread collar",), ("long sleeve",), ("cropped", "regular"), ("zip", "button")),
    Garment("JACKETS & COATS", "COATS", "coat", "top", ("wool",), ("spread collar", "hood"), ("long sleeve",), ("longline",), ("zip", "button")),
    Garment("DRESSES", "DRESSES", "dress", "dress", ("cotton", "denim", "knit"), ("crewneck", "V-neck"), ("sleeveless", "short sleeve", "long sleeve"), tuple(HEM_LENGTHS)),
    Garment("SKIRTS", "SKIRTS", "skirt", "skirt", ("cotton", "denim", "leather"), lengths=tuple(HEM_LENGTHS)),
    Garment("PANTS", "TROUSERS", "trousers", "trousers", ("cotton", "denim", "leather"), lengths=("cropped", "full-length")),
    Garment("SHORTS", "SHORTS", "shorts", "shorts", ("cotton", "denim"), lengths=("mini", "knee-length")),
    Garment("SHOES", "SNEAKERS", "sneakers", "sneaker", ("leather", "mesh"), lengths=("low-top", "high-top"), trims=("", "contrast trim")),
    Garment("SHOES", "BOOTS", "boots", "boot", ("leather",), lengths=("ankle", "knee-high"), closures=("", "zip"), trims=("", "contrast trim")),
    Garment("BAGS", "TOTES", "tote bag", "bag", ("leather", "cotton"), lengths=("small", "large"), closures=("", "zip")),
    Garment("HATS", "BEANIES", "beanie", "beanie", ("knit",), trims=("", "contrast trim", "pompom")),
    Garment("HATS", "CAPS", "cap", "cap", ("cotton", "denim"), trims=("", "contrast trim")),
)  # fmt: skip


class Product(NamedTuple):
    """One combination of attributes."""

    garment: int
    colour: str
    second: str  # the other colour of the pattern and the trim
    pattern: str
    material: str
    neckline: str
    sleeve: str
    length: str
    closure: str
    trim: str


def draw_product(random):
    """A random product; garments are equally likely."""
    number = random.randrange(len(GARMENTS))
    garment = GARMENTS[number]
    colour, second = random.sample(sorted(COLOURS), 2)
    return Product(
        number,
        colour,
        second,
        random.choice(PATTERNS),
        *(random.choice(choices) for choices in (garment.materials, garment.necklines, garment.sleeves)),
        *(random.choice(choices) for choices in (garment.lengths, garment.closures, garment.trims)),
    )


def caption_of(product, random):
    """The description, in one of several wordings."""
    garment = GARMENTS[product.garment]
    length = "" if product.length in ("", "regular") else product.length
    what = " ".join(word for word in (length, product.sleeve, product.material, garment.noun) if word)
    one = f"in {product.colour}"
    pattern = {
        "solid": random.choice(["Solid colour throughout", "Tonal throughout"]),
        "striped": f"Horizontal stripes in {product.second}",
        "pinstriped": f"{product.second.capitalize()} pinstripes",
        "checked": f"Check pattern in {product.second}",
        "polka dot": f"{product.second.capitalize()} polka dots",
        "colour block": f"Colour-blocked in {product.second}",
    }[product.pattern]
    detail = [
        {"spread collar": "Spread collar", "hood": "Drawstring hood"}.get(
            product.neckline, f"{product.neckline.capitalize()} collar"
        )
        if product.neckline
        else "",
        {"zip": random.choice(["Zip closure", "Zip fastening"]), "button": "Button closure"}.get(product.closure, ""),
        {
            "contrast trim": f"Trim in {product.second}",
            "patch pocket": f"Patch pocket in {product.second}",
            "pompom": f"Pompom in {product.second}",
        }.get(product.trim, ""),
    ]
    detail = [sentence for sentence in detail if sentence]
    random.shuffle(detail)
    opening = random.choice([f"{what} {one}", f"{product.colour} {what}", f"{what}, {product.colour}"])
    return ". ".join(text[0].upper() + text[1:] for text in (opening, pattern, *detail)) + "."


# ------------------------------------------------------------------------------------------------ drawing


def points(*pairs):
    """Unit coordinates -> canvas coordinates."""
    return [(x * CANVAS, y * CANVAS) for x, y in pairs]


def mirrored(*pairs):
    """The left half of an outline, from top to bottom, closed by its mirror image."""
    return points(*pairs, *((1 - x, y) for x, y in reversed(pairs)))


def silhouette(product):
    """The outlines of the garment as polygons: the body first."""
    shape = GARMENTS[product.garment].shape
    if shape in ("top", "dress"):
        hem = TOP_LENGTHS[product.length] if shape == "top" else HEM_LENGTHS[product.length]
        flare = 0.33 if shape == "top" else 0.33 - 0.26 * (hem - 0.4)
        waist = (0.35, 0.5) if shape == "top" else (0.38, 0.46)
        body = mirrored((0.42, 0.14), (0.31, 0.19), (0.335, 0.36), waist, (flare, hem))
        wrist = {"long sleeve": ((0.13, 0.66), (0.22, 0.69)), "short sleeve": ((0.17, 0.36), (0.27, 0.41))}.get(
            product.sleeve
        )
        if wrist is None:
            return [mirrored((0.40, 0.12), (0.35, 0.14), (0.335, 0.34), waist, (flare, hem))]
        sleeve = [(0.33, 0.17), (0.27, 0.21), *wrist, (0.36, 0.38)]
        return [body, points(*sleeve), points(*((1 - x, y) for x, y in sleeve))]
    if shape == "skirt":
        hem = HEM_LENGTHS[product.length]
        return [mirrored((0.38, 0.26), (0.38 - 0.3 * (hem - 0.26), hem))]
    if shape in ("trousers", "shorts"):
        hem = {"cropped": 0.76, "full-length": 0.94, "mini": 0.44, "knee-length": 0.60}[product.length]
        return [mirrored((0.36, 0.14), (0.31, 0.36), (0.30, hem), (0.45, hem), (0.495, 0.40))]
    if shape == "sneaker":
        top = 0.46 if product.length == "low-top" else 0.30
        return [points((0.16, top), (0.38, top), (0.46, 0.50), (0.70, 0.60), (0.87, 0.66), (0.88, 0.74), (0.15, 0.74))]
    if shape == "boot":
        top = 0.44 if product.length == "ankle" else 0.12
        return [points((0.24, top), (0.50, top), (0.49, 0.60), (0.68, 0.66), (0.82, 0.74), (0.83, 0.82), (0.24, 0.82))]
    if shape == "bag":
        left, top = (0.30, 0.46) if product.length == "small" else (0.18, 0.36)
        return [mirrored((left + 0.03, top), (left, 0.86))]
    dome = ((0.46, 0.24), (0.36, 0.28), (0.28, 0.38), (0.25, 0.52))
    if shape == "beanie":
        return [mirrored(*dome, (0.25, 0.66))]
    return [
        mirrored(*dome, (0.25, 0.58)),
        points((0.22, 0.56), (0.62, 0.55), (0.93, 0.63), (0.90, 0.67), (0.55, 0.62), (0.22, 0.62)),
    ]


def fabric(product):
    """A canvas of the garment's cloth: colours, pattern, and the texture of its material."""
    cloth = Image.new("RGB", (CANVAS, CANVAS), COLOURS[product.colour])
    draw, second = ImageDraw.Draw(cloth), COLOURS[product.second]
    step = CANVAS // 11
    if product.pattern in ("striped", "checked"):
        for y in range(0, CANVAS, step):
            draw.rectangle((0, y, CANVAS, y + step * 0.42), fill=second)
    if product.pattern == "checked":
        overlay = Image.new("RGB", cloth.size, COLOURS[product.colour])
        for x in range(0, CANVAS, step):
            ImageDraw.Draw(overlay).rectangle((x, 0, x + step * 0.42, CANVAS), fill=second)
        cloth = Image.blend(cloth, overlay, 0.5)
    if product.pattern == "pinstriped":
        for x in range(0, CANVAS, step):
            draw.rectangle((x, 0, x + step * 0.25, CANVAS), fill=second)
    if product.pattern == "polka dot":
        for row, y in enumerate(range(0, CANVAS, step)):
            for x in range((row % 2) * step // 2, CANVAS, step):
                draw.ellipse((x, y, x + step * 0.55, y + step * 0.55), fill=second)
    if product.pattern == "colour block":
        draw.rectangle((0, CANVAS * 0.46, CANVAS, CANVAS), fill=second)
    return textured(cloth, product.material)


def textured(cloth, material):
    """The look of a material: ribs, twill, gloss, mesh holes, or nap."""
    draw = ImageDraw.Draw(cloth, "RGBA")
    if material == "knit":
        for x in range(0, CANVAS, 9):
            draw.line((x, 0, x, CANVAS), fill=(0, 0, 0, 60), width=3)
    elif material == "denim":
        for offset in range(-CANVAS, CANVAS, 10):
            draw.line((offset, 0, offset + CANVAS, CANVAS), fill=(255, 255, 255, 70), width=3)
    elif material == "leather":
        shine = Image.linear_gradient("L").rotate(60).resize(cloth.size)
        shine = shine.point([max(0, 150 - abs(level - 128) * 5) for level in range(256)])
        cloth.paste(Image.new("RGB", cloth.size, "white"), mask=shine)
    elif material == "mesh":
        for y in range(0, CANVAS, 12):
            for x in range(0, CANVAS, 12):
                draw.ellipse((x, y, x + 5, y + 5), fill=(255, 255, 255, 150))
    elif material in ("wool", "fleece"):
        noise = Image.frombytes("L", cloth.size, random.Random(material).randbytes(CANVAS * CANVAS))
        nap = noise.filter(ImageFilter.GaussianBlur(2 if material == "wool" else 1)).convert("RGB")
        return ImageChops.overlay(cloth, nap)
    return cloth


def draw_details(picture, product, back):
    """Neckline, closure, trim and what else sits on the cloth; the back shows fewer of them."""
    draw, second = ImageDraw.Draw(picture), COLOURS[product.second]
    garment = GARMENTS[product.garment]
    dark = "#26262a" if product.colour != "black" else "#d8d8d8"
    shape, wide = garment.shape, CANVAS // 64
    if shape in ("top", "dress"):
        draw_neckline(draw, product, dark, second, back)
    if product.closure and not back:
        top, bottom = {"boot": (0.5, 0.7), "bag": (0.42, 0.5)}.get(shape, (0.2, 0.6))
        if product.closure == "zip":
            draw.line(points((0.5, top), (0.5, bottom + 0.12)), fill=dark, width=2 * wide)
            draw.line(points((0.5, top), (0.5, bottom + 0.12)), fill="#c9c9c9", width=wide)
        else:
            draw.line(points((0.5, top), (0.5, bottom + 0.1)), fill=dark, width=max(1, wide // 2))
            for number in range(5):
                (x, y), r = points((0.5, top + 0.04 + number * (bottom - top) / 4.4))[0], CANVAS * 0.014
                draw.ellipse((x - r, y - r, x + r, y + r), fill="#f7f4e8", outline=dark, width=2)
    if product.trim == "patch pocket" and not back:
        x, y = {"top": (0.55, 0.3), "dress": (0.54, 0.28), "bag": (0.43, 0.62)}.get(shape, (0.53, 0.3))
        draw.rectangle(points((x, y), (x + 0.11, y + 0.11)), fill=second, outline=dark, width=3)
    if product.trim == "pompom":
        draw.ellipse(points((0.42, 0.12), (0.58, 0.28)), fill=second, outline=dark, width=2)
    if shape == "sneaker":
        draw.rectangle(points((0.14, 0.72), (0.89, 0.79)), fill="#f4f2ec", outline="#888888", width=2)
        for number in range(3):
            draw.line(
                points((0.42 + 0.06 * number, 0.49 + 0.035 * number), (0.40 + 0.06 * number, 0.57 + 0.03 * number)),
                fill="#f4f2ec",
                width=5,
            )
    if shape == "boot":
        draw.rectangle(points((0.24, 0.81), (0.83, 0.86)), fill=dark)
        draw.rectangle(points((0.24, 0.85), (0.40, 0.92)), fill=dark)
    if shape == "bag":
        draw.arc(
            points((0.36, 0.14), (0.64, 0.78))[0] + points((0.36, 0.14), (0.64, 0.78))[1],
            180,
            360,
            fill=dark,
            width=3 * wide,
        )
    if shape == "beanie":
        draw.line(points((0.24, 0.58), (0.76, 0.58)), fill=dark, width=3)
    if shape in ("trousers", "shorts", "skirt"):
        top = 0.26 if shape == "skirt" else 0.14
        draw.line(points((0.36, top + 0.035), (0.64, top + 0.035)), fill=dark, width=3)
    if shape == "trousers" or shape == "shorts":
        draw.line(points((0.5, top + 0.035), (0.5, 0.40)), fill=dark, width=3)


def draw_neckline(draw, product, dark, second, back):
    """The opening at the neck, and a collar or a hood."""
    inner = "#e9e4da" if not back else COLOURS[product.colour]
    kind = product.neckline
    if kind == "V-neck":
        draw.polygon(
            points((0.42, 0.12), (0.58, 0.12), (0.5, 0.20 if back else 0.31)), fill=inner, outline=dark, width=3
        )
    elif kind == "turtleneck":
        draw.rectangle(points((0.42, 0.05), (0.58, 0.16)), fill=COLOURS[product.colour], outline=dark, width=3)
        draw.line(points((0.42, 0.09), (0.58, 0.09)), fill=dark, width=2)
    elif kind == "spread collar":
        draw.polygon(points((0.41, 0.11), (0.5, 0.17), (0.39, 0.25)), fill="#f4f2ec", outline=dark, width=3)
        draw.polygon(points((0.59, 0.11), (0.5, 0.17), (0.61, 0.25)), fill="#f4f2ec", outline=dark, width=3)
    elif kind == "hood":
        draw.ellipse(points((0.37, 0.02), (0.63, 0.25)), fill=COLOURS[product.colour], outline=dark, width=4)
        if not back:
            draw.ellipse(points((0.43, 0.07), (0.57, 0.23)), fill="#2c2c30")
    else:
        depth = 0.27 if kind == "scoop neck" else 0.19
        draw.chord(
            points((0.42, 0.06 if depth < 0.2 else 0.0), (0.58, depth))[0] + points((0.58, depth))[0],
            0,
            180,
            fill=inner,
            outline=dark,
            width=3,
        )


def cut_out(product, back):
    """The garment on a transparent canvas."""
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    outlines = silhouette(product)
    for outline in outlines:
        ImageDraw.Draw(mask).polygon(outline, fill=255)
    picture = fabric(product)
    draw_edges(picture, product, outlines)
    picture.putalpha(mask)
    draw_details(picture, product, back)
    return picture


def draw_edges(picture, product, outlines):
    """Outlines, seams, and the contrast trim along hem and cuffs."""
    draw = ImageDraw.Draw(picture)
    if product.trim == "contrast trim":
        lowest = max(y for _, y in outlines[0])
        draw.rectangle((0, lowest - CANVAS * 0.055, CANVAS, lowest), fill=COLOURS[product.second])
        for sleeve in outlines[1:] if GARMENTS[product.garment].shape != "cap" else ():
            draw.line([sleeve[2], sleeve[3]], fill=COLOURS[product.second], width=CANVAS // 14)
    edge = "#26262a" if product.colour != "black" else "#77777d"
    for outline in outlines:
        draw.line([*outline, outline[0]], fill=edge, width=4, joint="curve")


def draw_view(product, view, random):
    """One picture of a product: pose, scale, background and light are this view's own."""
    garment = cut_out(product, back=view == 1 and random.random() < 0.5)
    if random.random() < 0.5 and GARMENTS[product.garment].shape in ("sneaker", "boot", "cap"):
        garment = garment.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width = CANVAS * random.uniform(0.72, 0.85) if view == 2 else CANVAS  # turned a little to the side
    scale = random.uniform(0.80, 1.0) if view != 3 else random.uniform(1.05, 1.2)
    garment = garment.resize((int(width * scale), int(CANVAS * scale)), Image.Resampling.BILINEAR)
    garment = garment.rotate(random.uniform(-10, 10), Image.Resampling.BILINEAR, expand=True)
    x, y = (int((CANVAS - size) / 2 + random.uniform(-0.05, 0.05) * CANVAS) for size in garment.size)

    light = random.randint(205, 250)
    tint = [min(255, max(0, light + random.randint(-9, 9))) for _ in range(3)]
    picture = Image.new("RGB", (CANVAS, CANVAS), tuple(tint))
    fall_off = Image.linear_gradient("L").rotate(random.choice([0, 90, 180, 270])).resize(picture.size)
    picture = Image.composite(picture, ImageEnhance.Brightness(picture).enhance(0.88), fall_off)
    shadow = garment.getchannel("A").point(lambda value: value * 0.3).filter(ImageFilter.GaussianBlur(6))
    picture.paste((60, 60, 66), (x + 8, y + 10), shadow)
    picture.paste(garment, (x, y), garment)
    picture = ImageEnhance.Brightness(picture).enhance(random.uniform(0.9, 1.08))
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


# ------------------------------------------------------------------------------------------------- writing


def write_product(numbered, outdir, split, seed):
    """Write the views and the PAI records of one product; returns how many."""
    number, product = numbered
    generator = random.Random(f"{seed} {product}")
    product_id, garment = str(FIRST_ID + number), GARMENTS[product.garment]
    caption = caption_of(product, generator)
    views = generator.randint(2, 4)
    for view in range(views):
        name = f"{product_id}_{view + 1}"
        picture = draw_view(product, view, generator)
        picture.save(outdir / f"extracted_{split}_images" / f"{name}.png")
        record = {
            "product_id": product_id,
            "img_name": f"{name}.png",
            "super_cls_name": garment.category,
            "super_cls_id": sorted({g.category for g in GARMENTS}).index(garment.category),
            "sub_cls_name": garment.subcategory,
            "sub_cls_id": product.garment,
            "captions": caption,
            "input_ids": [101, 102],
            "token_type_ids": [0, 0],
            "attention_mask": [1, 1],
        }
        with open(outdir / f"full_{split}_info_PAI" / f"{name}.pkl", "wb") as file:
            pickle.dump(record, file)
    return views


def distinct_products(count, seed):
    """`count` products no two of which look alike."""
    generator, products = random.Random(seed), {}
    while len(products) < count:
        product = draw_product(generator)
        shown = product._replace(second="") if product.pattern == "solid" and not product.trim else product
        products.setdefault(shown, product)
    return list(products.values())


def draw_catalogue(outdir, train_products, valid_products, seed=0, processes=2):
    """Draw both splits; returns {split: (products, images)}."""
    numbered = list(enumerate(distinct_products(train_products + valid_products, seed)))
    counts = {}
    with ProcessPoolExecutor(processes) as pool:
        for split, part in (("train", numbered[:train_products]), ("valid", numbered[train_products:])):
            for folder in (f"full_{split}_info_PAI", f"extracted_{split}_images"):
                (outdir / folder).mkdir(parents=True, exist_ok=True)
            write = partial(write_product, outdir=outdir, split=split, seed=seed)
            counts[split] = (len(part), sum(pool.map(write, part, chunksize=20)))
    return counts


def write_table(outdir, name, products):
    """The pictures of both splits as a CSV, a row each; `products` by number."""
    with open(outdir / name, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["photo", "sku", "kind", "description", "colour", "pattern", "material"])
        for path in sorted(outdir.glob("full_*_info_PAI/*.pkl")):
            record = pickle.loads(path.read_bytes())
            photo = f"{path.parent.name.replace('full_', 'extracted_').replace('_info_PAI', '_images')}/{record['img_name']}"
            product = products[int(record["product_id"]) - FIRST_ID]
            said = [photo, record["product_id"], record["super_cls_name"], record["captions"]]
            table.writerow([*said, product.colour, product.pattern, product.material])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--train-products", type=int, default=1200)
    parser.add_argument("--valid-products", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", metavar="NAME.csv", help="also write the catalogue as a table, in OUTDIR")
    args = parser.parse_args(argv)
    for split, (products, images) in draw_catalogue(
        args.outdir, args.train_products, args.valid_products, args.seed
    ).items():
        print(f"{split}: {products:,} products, {images:,} images")
    if args.table:
        products = distinct_products(args.train_products + args.valid_products, args.seed)
        write_table(args.outdir, args.table, products)


if __name__ == "__main__":
    main()
