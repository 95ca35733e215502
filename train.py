"""Train a voice encoder, which predicts a face feature from the spectrogram of a voice.

--encoder conv is the paper's network and trains from scratch: for tens of thousands of clips and a GPU. --encoder speaker is
two pretrained speaker networks with a linear layer, fitted in closed form: for hundreds of clips, in a minute.

Reads the training and validation clips that preprocess.py wrote under --data. Writes to checkpoints/<run>/

    options.json       the options of the run
    clips.json         the clips that the run trains and validates on
    split.csv          with --split, who is in which part of the split
    centre.pkl         the mean face feature of the training faces, from which directions are compared
    history.jsonl      one object an epoch; epoch 0 is the closed form
    curves.png         loss and recall over the epochs
    tensorboard/       the same for TensorBoard, and the loss of each step
    best.weights.h5    the weights of the epoch with the least validation loss
    likely.npz         what faces a voice makes likely, for decoded faces
    certainty.npz      what tells how sure a prediction is
    last.weights.h5    the last weights and the state of the training, for --resume

The face decoder, which turns a face feature into a picture, is trained by `train.py decoder`, with options of its own.

    python train.py
    python train.py --encoder speaker
    python train.py --data data/voxceleb --split vox1_meta.csv
    python train.py decoder --data data/photos
"""

import sys
import time

import utils
from clips import splits
from training.options import DecoderOptions, Options, resumed, with_defaults
from utils import InputError
from voices import weights

DECODER_DOC = """Train the face decoder, which turns a face feature into a picture of the face.

The decoder is fitted to the portraits of clips or photos in closed form: for hundreds of people, in a minute or two.

Reads the training and validation faces that preprocess.py wrote under --data. Writes to checkpoints/<run>/

    options.json       the options of the run
    clips.json         the clips or photos that the run trains and validates on
    split.csv          with --split, who is in which part of the split
    centre.pkl         the mean face feature of the training faces
    history.jsonl      one object an epoch; epoch 0 is the closed form
    best.weights.h5    the weights of the epoch with the least validation loss
    decoded.png        faces of the validation set, true and decoded from their features

    python train.py decoder
    python train.py decoder --data data/photos --run photos
"""


def check_files(options: Options | DecoderOptions) -> None:
    """Raise InputError if the data folder, the decoder's run or the pretrained weights of a new run are missing."""
    if not options.data.is_dir():
        raise InputError(
            f"{options.data}: expected a folder that preprocess.py wrote, found none; run preprocess.py, or pass --data"
        )
    if isinstance(options, DecoderOptions):
        return
    if options.decoder:
        utils.existing_run(options.decoder)
    if options.encoder == "speaker" and not options.resume:
        weights.check_installed(options.embedding)


# ----------------------------------------------------------------------------------------------------------------------
# Training.


def train_encoder(options: Options, split: splits.Split | None) -> None:
    """Train a voice encoder: the loop over epochs. `training.setup` prepares it, `training.epochs` does an epoch.

    Args:
        options: with all defaults filled in.
        split: of a new run; None for a run that is resumed, which keeps its own.

    Raises:
        InputError: if there are too few clips, a file is broken, or the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when a checkpoint is written.
    """
    from clips import packs
    from faces import likely
    from listening import certainty
    from training import closed_form, epochs, runs, setup, steps
    from training.batches import predict_features, training_batches

    folder = utils.run_folder(options.run)
    if options.resume:
        clips, centre, split = setup.clips_of_run(folder, options.data, options.epochs)
    else:
        clips, feature_size, split = setup.choose_clips(options.data, split, options.clips, options.batch_size)
        centre = setup.choose_centre(options.centre, options.data, clips["train"], feature_size, options.seed)
    n_train = len(clips["train"])
    population = setup.population(options.data, clips["train"], len(centre), options.seed)
    setup.describe(clips, len(centre), options)
    strategy = setup.strategy(options)
    options = setup.with_precision(options)
    n_steps = n_train // options.batch_size  # in an epoch
    last_step = options.epochs * n_steps
    source = packs.open_pack(options.data, clips["train"], len(centre)) if last_step else None

    with strategy.scope():
        chief = steps.is_chief()  # of several machines, the one that validates and writes
        training = setup.build(options, centre, last_step)
        progress = runs.Progress()
        if options.resume:
            progress = setup.resume(folder, options, training, n_steps)
        on_both = options.encoder == "speaker" and options.epochs == 0 and closed_form.has_few_people(clips["val"])
        if chief:
            runs.start(folder, options, clips, centre, split, on_both)

        def save():
            if chief:
                runs.save_weights(folder / utils.LAST_WEIGHTS, training.encoder, training.state, progress)

        def end_epoch(number, train_loss, n_clips, predicted, unseen, **more):
            """Validate, save and write history, with `more` in the record of the epoch. Returns the record."""
            scores = epochs.validate(predicted, training.loss, centre, clips["val"], options.batch_size)
            rate = float(training.optimizer.learning_rate)
            record = epochs.record_epoch(progress, number, train_loss, n_clips, rate, {**scores, **more})
            if record["val_loss"] < progress.best_loss:
                progress.best_epoch, progress.best_loss = number, record["val_loss"]
                _, voices, faces = unseen
                likely.fit(utils.normalise(voices - centre), faces, population).save(folder / utils.LIKELY)
                of_voices = epochs.unseen_voices(training.encoder, options.data, unseen, centre)
                certainty.fit(*of_voices).save(folder / utils.CERTAINTY)
                runs.save_weights(folder / utils.BEST_WEIGHTS, training.encoder)
            save()
            epochs.write_history(folder, progress.history, options.format)
            return record

        of_steps = setup.crops(options), progress.step, last_step
        batches, errors = training_batches(options.data, clips["train"], len(centre), *of_steps, source, options.readers)
        with epochs.event_writer(folder, options.epochs if chief else 0).as_default():
            if options.encoder == "speaker" and not options.resume:
                started = time.perf_counter()
                fitted = closed_form.fit(
                    training.encoder, training.loss, centre, options.data, clips, options.whitening, on_both
                )
                progress.seconds = seconds = time.perf_counter() - started
                more = {"cv_matching": fitted.matching} if fitted.cross_validated else {}
                end_epoch(0, fitted.train_loss, n_train, fitted.validation, fitted.unseen, **more)
                print(epochs.line_of_closed_form(seconds, fitted), flush=True)
            left = options.epochs - progress.step // n_steps
            timed = (lambda seconds: print(epochs.line_of_time(seconds, n_steps, left), file=sys.stderr)) if chief else None
            with epochs.noting_signals() as signals:
                stops = steps.agreement(signals)
                while progress.step < last_step and not stops():
                    epochs.train_epoch(
                        training.step, batches, errors, progress, n_steps, save, options.save_minutes, stops, timed
                    )
                    timed = None
                    if chief:
                        number, train_loss = progress.step // n_steps, progress.loss_sum / n_steps
                        predicted = predict_features(training.encoder, options.data, clips["val"], len(centre))
                        n_clips, unseen = n_steps * options.batch_size, (clips["val"], *predicted)
                        record = end_epoch(number, train_loss, n_clips, predicted, unseen)
                        print(epochs.line_of_epoch(record, options.epochs), flush=True)
    if progress.step < last_step:
        raise KeyboardInterrupt
    if progress.history:
        print(epochs.line_of_best(progress, folder / utils.BEST_WEIGHTS))


@utils.reporting_errors
def main(argv=None) -> int:
    given = utils.options_given(argv)
    if "model" in given:
        print("error: --model: expected no such option; to train the face decoder: python train.py decoder", file=sys.stderr)
        return 2
    options = utils.parse_options(Options, __doc__, argv, commands={"decoder": (DecoderOptions, DECODER_DOC)})
    if isinstance(options, Options):
        options = resumed(options, given) if options.resume else with_defaults(options)
    check_files(options)
    is_resumed = isinstance(options, Options) and options.resume
    split = None if is_resumed else splits.read_split(options.split, options.names, options.seed)
    if isinstance(options, DecoderOptions):
        from training import decoder_training

        decoder_training.train(options, split, utils.run_folder(options.run))
        return 0
    try:
        train_encoder(options, split)
    except KeyboardInterrupt:
        if (utils.run_folder(options.run) / utils.LAST_WEIGHTS).exists():
            print(f"train: to continue: python train.py --run {options.run} --resume", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
