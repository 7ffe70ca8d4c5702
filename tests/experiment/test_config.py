"""Settings are checked before anything is computed, and mistakes are named."""

from __future__ import annotations

import pytest

from isd.experiment import Arm, Config, read_config
from isd.experiment._config import CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_that_come_with_the_package_can_be_read(name):
    config = read_config(name)
    assert config.rows == ["bulk", "single_cell", "transfer"] and config.guidance == ["unguided", "guided"]
    assert set(config.arms) == {"default", "published"} and config.arms["published"].preset == "published"
    assert config.arms["published"].with_classifier and not config.arms["default"].with_classifier
    assert read_config(config.to_dict()).to_dict() == config.to_dict()


def test_guidance_is_tuned_unless_told():
    tuned = {name: arm.tuned for name, arm in read_config("hour").arms.items()}
    assert tuned == {"default": True, "published": False}
    assert Arm(guided={"guidance_scale": "tuned"}).tuned
    assert not Arm(guided={"guidance_scale": 2}).tuned and not Arm(classifier=True).tuned
    assert not Arm(guided={"latents": "gaussian"}).tuned


def test_the_original_has_the_published_sizes():
    config = read_config("original")
    published = config.arms["published"]
    assert published.diffusion_train == {"max_steps": 200_000, "batch_size": 128}
    assert published.guided == {"classifier_scale": 2.0, "start_guide_step": 500}
    assert config.one_class == "0" and config.n_obs == 5000
    assert config.data.bulk.endswith("bulk.h5ad") and config.data.labels_key == "leiden"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sedes": [0]}, r"config: 'sedes' is not known\. Did you mean 'seeds'\?"),
        ({"data": {"label_key": "x"}}, r"config\.data: 'label_key' .* 'labels_key'\?"),
        ({"data": {"simulated": {"n_var": 5}}}, r"config\.data\.simulated: 'n_var' .* 'n_vars'\?"),
        ({"arms": {"mine": {"vae_train": {"max_step": 5}}}}, r"arms\.mine\.vae_train: 'max_step' .* 'max_steps'\?"),
        ({"arms": {"mine": {"vae": {"hidden": 5}}}}, r"arms\.mine\.vae: 'hidden' .* 'n_hidden'\?"),
        ({"arms": {"mine": {"guided": {"guidance": 2}}}}, r"arms\.mine\.guided: 'guidance' .* 'guidance_scale'\?"),
        ({"arms": {"mine": {"transfer": {"freezes": 2}}}}, r"arms\.mine\.transfer: 'freezes' .* 'freeze'\?"),
        ({"arms": {"mine": {"guided": {"seed": 2}}}}, r"arms\.mine\.guided: 'seed' is not known"),
        (
            {"arms": {"mine": {"guided": {"guidance_scale": "tuend"}}}},
            r"guidance_scale is 'tuend'; expected a number .* 'tuned'",
        ),
        ({"arms": {"mine": {"unguided": {"guidance_scale": "tuned"}}}}, r"mine\.unguided\.guidance_scale is 'tuned'"),
        (
            {"arms": {"mine": {"preset": "published", "guided": {"guidance_scale": "tuned"}}}},
            r"mine\.guided\.guidance_scale is 'tuned'; .* knows labels",
        ),
        # it would be tuned without what else guides, or fail once all is trained
        (
            {"arms": {"mine": {"classifier": True, "guided": {"guidance_scale": "tuned", "classifier_scale": 1.0}}}},
            r"mine\.guided\.guidance_scale is 'tuned'; .* no classifier",
        ),
        (
            {"arms": {"mine": {"guided": {"guidance_scale": "tuned", "latents": "gaussian"}}}},
            r"mine\.guided\.guidance_scale is 'tuned'; .* the diffusion's latents",
        ),
        ({"arms": {"mine": {"preset": "fast"}}}, r"config\.arms\.mine\.preset is 'fast'; expected one of 'default'"),
        ({"rows": ["bluk"]}, r"rows: 'bluk' .* Did you mean 'bulk'\?"),
        (
            {"evaluation": {"metrics": ["recal"]}},
            r"evaluation\.metrics: 'recal' is not known\. Did you mean 'recall'\?",
        ),
        ({"seeds": 3}, r"config\.seeds is 3; expected a list"),
        ({"seeds": ["a"]}, r"config\.seeds\[0\] is 'a'; expected int"),
        ({"seeds": []}, "at least one"),
        ({"n_obs": 0}, "n_obs is 0"),
        ({"keep_generated": 1}, r"keep_generated is 1; expected bool"),
        ({"data": 5}, r"config\.data is 5; expected keys"),
        (
            {"arms": {"a": {"same_minutes_as": "b"}, "b": {}}},
            r"arms\.a\.same_minutes_as is 'b'; expected an arm before",
        ),
    ],
)
def test_mistakes_are_named(settings, match):
    with pytest.raises(ValueError, match=match):
        read_config(settings)


def test_a_file_is_read_and_its_paths_are_its_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {bulk: samples/bulk.h5ad}\none_class: 3\nseeds: [1, 2]\n")
    config = read_config(file)
    assert isinstance(config, Config) and config.seeds == [1, 2]
    assert config.one_class == "3"  # a label is text, quoted or not
    assert config.data.bulk == str(tmp_path / "samples" / "bulk.h5ad") and config.data.single_cell == "simulated"
    file.write_text("")
    assert read_config(file).to_dict() == Config().to_dict()
    file.write_text("data: [unclosed")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_config(file)
    file.write_text("data: !!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_config(file)
    with pytest.raises(FileNotFoundError, match="smoke, hour, original"):
        read_config("smok")
