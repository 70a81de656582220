from opd_trl.models.forward import multimodal_inputs


def test_videos_go_to_the_backbone_with_the_images():
    batch = {"pixel_values": 1, "pixel_values_videos": 2, "video_grid_thw": 3, "prompt_ids": 4}
    assert multimodal_inputs(batch) == {"pixel_values": 1, "pixel_values_videos": 2, "video_grid_thw": 3}
