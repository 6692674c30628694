"""How well a model predicts a text, in a terminal."""


def table(document: dict) -> str:
    from karipap_core.evaluation.wrong_text import share_of
    from karipap_core.terminal import grid, value

    rows = [
        ["the model", f"{document['bits_per_byte']:.3f}", "bits a byte"],
        ["zlib, bz2 or xz", f"{document['compressor_bits_per_byte']:.3f}", "bits a byte, of the same bytes alone"],
        ["share", f"{share_of(document):.2f}", "0.2 to 0.4 on text of the kind that a small model was trained on"],
        ["loss", f"{document['loss']:.3f}", f"nats a token; guessing blindly {document['guessing']:.3f}"],
    ]
    size = f"{document['tokens']:,} tokens, {document['text_bytes']:,} bytes"
    said = document["warning"] or "Nothing speaks against this text."
    return f"{value(document['text']['name'])}, {size}\n\n{grid(['', '', ''], rows)}\n\n{value(said)}"
